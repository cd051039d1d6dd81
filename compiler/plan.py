"""From a recipe to a plan: sample, observe, equalize, choose ranges and theta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F

from nextscale.compiler.calibration import choose_images, observe
from nextscale.compiler.choose_ranges import choose_static_ranges, equalize, equalized_ranges
from nextscale.compiler.float_model import FloatModel
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.compiler.rounders import weight_rounder
from nextscale.compiler.theta import theta_within_budget
from nextscale.graph_passes.attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.observe_inputs import Input, Observer
from nextscale.graph_passes.pipeline import StageLayers, StagePlan, stage_layers
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.quantize_decoder import DecoderRanges
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.equalization import Equalization, equalizable_layers
from nextscale.models.var.transformer import VAR


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        stage: for the stage graph.
        equalization: to build it with.
        decoder_ranges: for the decoder.
        report: what a manifest says of it, plain values.
    """

    stage: StagePlan
    equalization: Equalization
    decoder_ranges: DecoderRanges
    report: Mapping[str, Any]


def make_plan(model: FloatModel, options: BuildOptions, progress: Progress) -> Plan:
    """Calibrate for a recipe.

    Args:
        model: what to quantize.
        options: recipe and settings; its rounding is the recipe's (`require_rounding`).
        progress: told each step.
    """
    recipe, var = options.recipe, model.source.var
    layers = stage_layers(model.stage, recipe)
    operands = _operands(attention_patterns(model.stage.graph)) if _has_static_attention(recipe) else {}
    images = choose_images(model, options, progress)
    observation, decoder_ranges = observe(model, _observers(var, recipe, layers, operands), images, options, progress)
    equalization = equalize(var, observation.ranges, options)
    ranges = equalized_ranges(var, observation.ranges, equalization)
    static = choose_static_ranges(model, layers, ranges, equalization, observation, options, progress)
    report: dict[str, Any] = {"calibration": dict(images.report)}
    shift_and_sum = None
    if recipe.attention.shift_and_sum != "off":
        choice = options.theta or theta_within_budget(
            model.bundle,
            recipe,
            observation.class_labels,
            observation.token_maps,
            options.session,
            options.batch_size,
            progress,
        )
        report["shift_and_sum"] = asdict(choice)
        shift_and_sum = ShiftAndSum(recipe.attention.shift_and_sum, choice.theta, choice.rows, options.count_overflow)
    stage = StagePlan(
        recipe,
        _by_layer(layers, static) | _class_ranges(var, layers.by_class),
        {name: PairRanges(*(static[part] for part in Input(name).parts())) for name in layers.pairs},
        {name: float(ranges[Input(name)].minimum.min()) for name in layers.dynamic},
        weight_rounder(options),
        {name: _magnitudes(ranges, keys) for name, keys in operands.items()} or None,
        shift_and_sum,
        options.reduce_range,
    )
    return Plan(stage, equalization, decoder_ranges, report)


def _has_static_attention(recipe: Recipe) -> bool:
    return recipe.attention.products == "integer" and recipe.attention.granularity == "tensor"


def _operands(patterns: list[AttentionPattern]) -> dict[str, tuple[Input, Input, Input]]:
    """Query, key and value by attention."""
    return {
        p.name: (Input(str(p.scores.name)), Input(str(p.scores.name), 1), Input(str(p.mix.name), 1)) for p in patterns
    }


def _observers(
    var: VAR, recipe: Recipe, layers: StageLayers, operands: Mapping[str, tuple[Input, ...]]
) -> list[Observer]:
    """What has to be known of the stage graph's inputs."""
    whole = [Input(name) for name in (*layers.static, *layers.dynamic)]
    whole += [key for keys in operands.values() for key in keys]
    by_channel = [part for name in layers.pairs for part in Input(name).parts()]
    if recipe.equalization.alpha > 0:
        # Layers that share an input see the same channels: the first of them is observed for all.
        by_channel += [Input(linears[0]) for linears in equalizable_layers(var).values()]
    return [*(Observer(key, "range") for key in whole), *(Observer(key, "channels") for key in by_channel)]


def _by_layer(layers: StageLayers, static: Mapping[Input, Range]) -> dict[str, Range]:
    """[S] by stage, or [1] over all stages, as the recipe chooses for each layer."""
    return {
        name: static[Input(name)].over_stages() if choice == "tensor" else static[Input(name)]
        for name, choice in layers.static.items()
    }


def _class_ranges(var: VAR, layers: list[str]) -> dict[str, Range]:
    """The range of what adaLN's linear layers see: SiLU of the class embeddings, of all classes at once."""
    activated = F.silu(var.class_emb.weight)
    both = Range(*(np.array([extreme.item()], np.float32) for extreme in (activated.min(), activated.max())))
    return dict.fromkeys(layers, both)


def _magnitudes(ranges: Mapping[Input, Range], keys: tuple[Input, ...]) -> Magnitudes:
    found = (ranges[key] for key in keys)
    return Magnitudes(*(float(max(-ends.minimum.min(), ends.maximum.max())) for ends in found))
