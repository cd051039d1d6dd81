"""theta of shift-and-sum under a recipe's budget, from the attention that the full-precision model pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from nextscale.calib_data.attention_scores import collect_scores
from nextscale.calib_data.choose_theta import ThetaChoice, choose_theta
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import SampledImages, Subjects, TokenRows
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.family import Family
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerAttention, IntegerModel
from nextscale.graph_passes.observe_scores import observe_scores
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.bit_operations import BitWidths
from nextscale.runtime._bundle import Bundle

SCORE_IMAGES = 32


def shift_and_sum(recipe: Recipe, choice: ThetaChoice | None, count_overflow: bool = False) -> ShiftAndSum | None:
    """The recipe's shift-and-sum with the theta and places that were chosen; None where it has none."""
    form = recipe.attention.shift_and_sum
    return None if choice is None or form == "off" else ShiftAndSum(form, choice.theta, choice.rows, count_overflow)


def theta_of_recipe(
    family: Family, bundle: Bundle, maps: SampledImages, options: BuildOptions, progress: Progress
) -> ThetaChoice:
    """`theta_within_budget` of a full-precision bundle and a recipe with shift-and-sum, before anything is built.

    Args:
        family: the model.
        bundle: in full precision.
        maps: images, and the tokens of each.
        options, progress: as there.
    """
    attention = IntegerModel.decide(options.recipe, family.facts()).attention
    assert attention is not None  # of a recipe with shift-and-sum
    stage = FloatModel.stage_of(family, bundle)
    return theta_within_budget(family, bundle, stage, attention, maps.subjects, maps.token_maps, options, progress)


def theta_within_budget(
    family: Family,
    bundle: Bundle,
    stage: ir.Model,
    attention: IntegerAttention,
    subjects: Subjects,
    token_maps: TokenRows,
    options: BuildOptions,
    progress: Progress,
) -> ThetaChoice:
    """theta within the recipe's budget, and places that are rarely too few.

    Of the sizes of the images, the one of most stages, and of these of most tokens, decides: budget and scores are of
    its images. Other sizes have the same theta and places, and stages behind its last have that one's.

    Args:
        family: the model.
        bundle: in full precision.
        stage: its stage graph, before `Family.as_run`, since all scores of a stage are needed together.
        attention: what is to be integer, of a recipe with shift-and-sum.
        subjects, token_maps: N images, and the tokens of each; the first `SCORE_IMAGES` of the size are fed to the
            model.
        options: recipe, threads and images at a time.
        progress: told each batch.
    Raises:
        NextscaleError: the budget is smaller than what Eq. 11 alone costs.
    """
    models = bundle.manifest.models
    sizes = np.unique(subjects.sizes).tolist()
    size = max(sizes, key=lambda index: (models[index].num_stages, models[index].num_tokens))
    chosen = np.flatnonzero(subjects.sizes == size)[:SCORE_IMAGES]
    images, step = len(chosen), "observing attention"
    progress(step, 0, images)
    observed = ObservedStage.open(bundle, observe_scores(stage, attention.names), options.session)
    statistics = collect_scores(
        observed,
        subjects.pick(chosen),
        [token_maps[image] for image in chosen],
        batch_size=options.batch_size,
        on_images=lambda done: progress(step, done, images),
    )
    facts, recipe = family.facts(size), options.recipe
    bits = BitWidths(recipe.weights.bits, recipe.activations.bits)
    text_tokens = facts.text_tokens if set(attention.names) & set(facts.cross_attentions) else 0
    # The published form's costs, whichever form runs: both then expand the same tokens.
    choice = choose_theta(
        statistics, models[size], facts, bits, recipe.attention.budget, "duplicate", text_tokens=text_tokens
    )
    further = max(model.num_stages for model in models) - len(choice.rows)
    return replace(choice, rows=choice.rows + choice.rows[-1:] * further)
