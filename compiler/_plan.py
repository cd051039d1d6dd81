"""From a recipe to a plan: sample, observe, equalize, choose ranges and theta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from nextscale.compiler._autoencoder import observe_decoder, observe_encoder
from nextscale.compiler._calibration import choose_images, observe
from nextscale.compiler._choose_ranges import choose_static_ranges, equalize, equalized_ranges
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._rounders import weight_rounder
from nextscale.compiler._theta import shift_and_sum, theta_within_budget
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.observe_inputs import Input, Observer
from nextscale.graph_passes.pipeline import StagePlan
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.quantize_autoencoder import AutoencoderObservation
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.models.equalization import Equalization


@dataclass(frozen=True)
class Plan:
    """What was decided.

    Attributes:
        stage: for the stage graph.
        equalization: to build it with.
        decoder, encoder: what is known of their values; None where no such graph becomes integer.
        report: what a manifest says of it, plain values.
    """

    stage: StagePlan
    equalization: Equalization
    decoder: AutoencoderObservation | None
    encoder: AutoencoderObservation | None
    report: Mapping[str, Any]


def make_plan(model: FloatModel, integer: IntegerModel, options: BuildOptions, progress: Progress) -> Plan:
    """Calibrate for a recipe.

    Args:
        model: what to quantize.
        integer: what of it the recipe makes integer, and how.
        options: recipe and settings; its rounding is the recipe's (`require_rounding`).
        progress: told each step.
    """
    recipe, facts = options.recipe, integer.facts
    operands = _operands(model.stage, integer) if integer.static_attention else {}
    images = choose_images(model, options, progress)
    observers = _observers(integer, recipe.equalization.alpha > 0, operands)
    observation = observe(model, observers, images, options, progress)
    equalization = equalize(model.family, facts, observation.ranges, options)
    ranges = equalized_ranges(facts, observation.ranges, equalization)
    static = choose_static_ranges(model, integer, ranges, equalization, observation, options, progress)
    report: dict[str, Any] = {"calibration": dict(images.report)}
    choice = options.theta
    if integer.attention is not None and recipe.attention.shift_and_sum != "off":
        images_and_tokens = observation.subjects, observation.token_maps
        choice = choice or theta_within_budget(
            model.family, model.bundle, model.stage, integer.attention, *images_and_tokens, options, progress
        )
        report["shift_and_sum"] = asdict(choice)
    stage = StagePlan(
        integer,
        {name: integer.layers[name].static_range(static[Input(name)]) for name in integer.static} | integer.known,
        {name: PairRanges(*(static[part] for part in Input(name).parts())) for name in integer.pairs},
        weight_rounder(options),
        {name: Magnitudes.of(*(ranges[key] for key in keys)) for name, keys in operands.items()} or None,
        shift_and_sum(recipe, choice, options.count_overflow),
    )
    integer_autoencoder = recipe.decoder.precision == "integer"
    decoder = observe_decoder(model, observation.f_hat, options, progress) if integer_autoencoder else None
    with_encoder = integer_autoencoder and options.encoder
    encoder = observe_encoder(model, observation.f_hat, options, progress) if with_encoder else None
    return Plan(stage, equalization, decoder, encoder, report)


def _operands(stage: ir.Model, integer: IntegerModel) -> dict[str, tuple[Input, Input, Input]]:
    """Query, key and value of each attention that becomes integer."""
    names = () if integer.attention is None else integer.attention.names
    patterns = [pattern for pattern in attention_patterns(stage.graph) if pattern.name in names]
    named = [(pattern.name, str(pattern.scores.name), str(pattern.mix.name)) for pattern in patterns]
    return {name: (Input(scores), Input(scores, 1), Input(mix, 1)) for name, scores, mix in named}


def _observers(integer: IntegerModel, equalizes: bool, operands: Mapping[str, tuple[Input, ...]]) -> list[Observer]:
    """What has to be known of the stage graph's inputs."""
    whole = [Input(name) for name in integer.static]
    whole += [key for keys in operands.values() for key in keys]
    by_channel = [part for name in integer.pairs for part in Input(name).parts()]
    if equalizes:
        # Layers that share an input see the same channels: the first of them is observed for all.
        by_channel += [Input(linears[0]) for linears in integer.facts.equalizable().values()]
    return [*(Observer(key, "range") for key in whole), *(Observer(key, "channels") for key in by_channel)]
