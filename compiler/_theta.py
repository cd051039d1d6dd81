"""theta of shift-and-sum under a recipe's budget, from the attention that the full-precision model pays."""

from __future__ import annotations

from nextscale.calib_data.attention_scores import collect_scores, open_observed
from nextscale.calib_data.choose_theta import ThetaChoice, choose_theta
from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.compiler.options import Progress
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.operations import BitWidths
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

SCORE_IMAGES = 32


def shift_and_sum(recipe: Recipe, choice: ThetaChoice | None, count_overflow: bool = False) -> ShiftAndSum | None:
    """The recipe's shift-and-sum with the theta and places that were chosen; None where it has none."""
    form = recipe.attention.shift_and_sum
    return None if choice is None or form == "off" else ShiftAndSum(form, choice.theta, choice.rows, count_overflow)


def theta_within_budget(
    bundle: Bundle,
    facts: StageFacts,
    recipe: Recipe,
    subjects: Subjects,
    token_maps: TokenRows,
    options: SessionOptions,
    batch_size: int,
    progress: Progress,
) -> ThetaChoice:
    """theta within the recipe's budget, and places that are rarely too few.

    Args:
        bundle: in full precision.
        facts: of its stage graph.
        recipe: with shift-and-sum.
        subjects, token_maps: N images, and int64 [L] of each; the first `SCORE_IMAGES` are fed to the model.
        options: threads and memory.
        batch_size: images at a time.
        progress: told each batch.
    Raises:
        NextscaleError: the budget is smaller than what Eq. 11 alone costs.
    """
    images, step = min(SCORE_IMAGES, len(subjects)), "observing attention"
    progress(step, 0, images)
    statistics = collect_scores(
        open_observed(bundle, options),
        subjects[:images],
        token_maps[:images],
        batch_size=batch_size,
        on_images=lambda done: progress(step, done, images),
    )
    bits = BitWidths(recipe.weights.bits, recipe.activations.bits)
    # The published form's costs, whichever form runs: both then expand the same tokens.
    return choose_theta(statistics, bundle.model, facts, bits, recipe.attention.budget, "duplicate")
