"""From a recipe to a plan: sample, observe and decide what the passes need to make the stage graph integer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch

from nextscale.calib_data.attention_scores import collect_scores, observed_bundle
from nextscale.calib_data.calibrate import Calibration, CalibrationSettings, calibrate
from nextscale.calib_data.choose_theta import ThetaChoice, choose_theta
from nextscale.calib_data.observe_histograms import Observed, choose_range, observe_histograms
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.linear_layers import WeightRounder, nearest, reduced_range
from nextscale.graph_passes.observe_ranges import PARTS, expose_inputs, observe_channels, observe_pairs, observe_ranges
from nextscale.graph_passes.pipeline import StagePlan
from nextscale.graph_passes.qparams import PAIR_LIMIT, WEIGHT_QMAX, QuantizedWeight, Range, WeightQParams
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.quantize_decoder import (
    DecoderRanges,
    integer_convolutions,
    observe_decoder,
    observed_results,
)
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.sources import Source
from nextscale.models.var.equalization import Equalization, choose_equalization
from nextscale.models.var.layers import facts_of
from nextscale.models.var.operations import BitWidths
from nextscale.models.var.transformer import VAR
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import NextscaleError
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions
from nextscale.simulation.rounding import Rounding

# Enough images for the shape of a distribution, of which each gives hundreds of tokens; the rest widen the range.
HISTOGRAM_IMAGES = 16
SCORE_IMAGES = 32


class Progress(Protocol):
    """How a build tells where it is."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        """`step` begins, or has `done` of `total` images."""


class Writer(Protocol):
    """Writes a float32 bundle of some graphs into a folder."""

    def __call__(self, folder: Path, stage_model: ir.Model, decoder_model: ir.Model) -> None: ...


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        recipe: how to quantize.
        seed: of sampling.
        batch_size: images at a time.
        session: threads and memory.
        token_maps: sampled before; None samples the recipe's number of images.
        rounding: of a recipe with reconstructed weights.
        theta: of a recipe with shift-and-sum, chosen before; None chooses it from the model's own attention.
        count_overflow: let the graph count attentive tokens without a place.
        reduce_range: keep every pair of integer products within 16 bits, for CPUs without VNNI.
    """

    recipe: Recipe
    seed: int = 0
    batch_size: int = 2
    session: SessionOptions = field(default_factory=SessionOptions)
    token_maps: TokenMaps | None = None
    rounding: Rounding | None = None
    theta: ThetaChoice | None = None
    count_overflow: bool = False
    reduce_range: bool = False

    def calibration(self) -> CalibrationSettings:
        return CalibrationSettings(self.recipe.calibration.images, self.seed, batch_size=self.batch_size)


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


def make_plan(
    source: Source,
    stage_model: ir.Model,
    decoder_model: ir.Model,
    work: Path,
    options: BuildOptions,
    write: Writer,
    progress: Progress,
) -> Plan:
    """Calibrate for a recipe.

    Args:
        source: the model.
        stage_model, decoder_model: its float32 graphs.
        work: an empty folder beside the bundle, for float32 bundles with observers; `work / "full_precision"` stays.
        options: recipe and settings.
        write: writes such a bundle.
        progress: told each step.
    Raises:
        NextscaleError: the recipe needs reconstructed weights, and there are none, or others.
    """
    recipe, report = options.recipe, dict[str, Any]()
    if options.reduce_range:
        require_reducible(recipe)
    facts = facts_of(source.var)
    layers = IntegerModel.decide(recipe, facts, options.reduce_range)
    _require_rounding(layers, options)
    patterns = [found for found in attention_patterns(stage_model.graph) if found.name in facts.attentions]
    attention_inputs = _attention_inputs(patterns) if layers.static_attention else {}
    observed = [*layers.static, *(name for names in attention_inputs.values() for name in names)]
    # Layers that share an input see the same channels: the first of them is observed for all.
    channels = [linears[0] for linears in facts.equalizable().values()]
    channels = channels if recipe.equalization.alpha > 0 else []
    full_precision = work / "full_precision"
    progress("writing the full-precision model for calibration")
    full_precision.mkdir()
    write(
        full_precision,
        observe_pairs(observe_channels(observe_ranges(stage_model, observed), channels), layers.pairs),
        observe_decoder(decoder_model),
    )
    bundle = Bundle.open(full_precision)
    token_maps = options.token_maps
    if token_maps is None and recipe.calibration.matching != "none":
        token_maps = _sample(bundle, work, options, progress)
    images = len(token_maps) if token_maps is not None else recipe.calibration.images
    progress("calibrating", 0, images)
    calibration = calibrate(
        bundle,
        observed,
        channels,
        layers.pairs,
        (integer_convolutions(decoder_model), observed_results(decoder_model)),
        options.calibration(),
        options.session,
        lambda done: progress("calibrating", done, images),
        token_maps,
    )
    report["calibration"] = {"images": images, "seed": options.seed, "cfg_scale": options.calibration().cfg_scale}
    if token_maps is not None:
        report["calibration"] |= {"token_maps": dict(token_maps.settings)}
    equalization = _equalization(source.var, facts, calibration, options)
    ranges = _equalized_ranges(facts, calibration, equalization)
    static: dict[Observed, Range] = {(name, None): ranges[name] for name in layers.static}
    static |= {
        (name, part): found
        for name in layers.pairs
        for part, found in _pair_ranges(facts, name, calibration, equalization).items()
    }
    if static and recipe.activations.range != "max":
        exposed = work / "equalized"
        exposed.mkdir()
        equalized = build_stage_graph(source.var, source.vqvae.quantize, equalization)
        write(exposed, expose_inputs(equalized, [*layers.static, *layers.pairs]), decoder_model)
        static = _chosen_ranges(Bundle.open(exposed), static, calibration, options, progress)
    by_layer = {name: layers.layers[name].static_range(static[name, None]) for name in layers.static}
    shift_and_sum = None
    if recipe.attention.shift_and_sum != "off":
        choice = options.theta or _chosen_theta(bundle, facts, calibration, options, progress)
        form, report["shift_and_sum"] = recipe.attention.shift_and_sum, asdict(choice)
        shift_and_sum = ShiftAndSum(form, choice.theta, choice.rows, options.count_overflow)
    stage = StagePlan(
        layers,
        by_layer | layers.known,
        {name: PairRanges(*(static[name, part] for part in PARTS)) for name in layers.pairs},
        _rounder(options),
        {
            name: Magnitudes.of(*(calibration.stage_ranges[operand] for operand in operands))
            for name, operands in attention_inputs.items()
        }
        or None,
        shift_and_sum,
    )
    return Plan(stage, equalization, calibration.decoder_ranges, report)


def require_reducible(recipe: Recipe) -> None:
    """Raise NextscaleError if the recipe's weights were learned for codes that --reduce-range would take from them."""
    largest = 2 * min(2**recipe.weights.bits - 1, WEIGHT_QMAX) * (2**recipe.activations.bits - 1)
    if recipe.weights.rounding == "reconstructed" and largest > PAIR_LIMIT:
        raise NextscaleError(
            f"recipe {recipe.name}: its rounding was learned for {recipe.weights.bits} bits, which --reduce-range"
            " would undo; choose a recipe that rounds to nearest"
        )


def _require_rounding(layers: IntegerModel, options: BuildOptions) -> None:
    """Refuse a rounding that is missing, of no use, or of another recipe or model."""
    recipe, rounding = options.recipe, options.rounding
    if recipe.weights.rounding == "nearest":
        if rounding is not None:
            raise NextscaleError(f"recipe {recipe.name}: rounds weights to nearest, so it takes no --rounding")
        return
    if rounding is None:
        raise NextscaleError(
            f"recipe {recipe.name}: its weights are reconstructed; run `nextscale reconstruct` with it first, and give "
            "the file with --rounding"
        )
    shapes = {layer.name: layer.shape for layer in layers.facts.layers}
    equalized = layers.facts.equalizable() if recipe.equalization.alpha > 0 else {}
    rounding.require(
        recipe,
        {layer.name: layer.shape for layer in layers.learned()},
        {name: shapes[linears[0]][1:] for name, linears in equalized.items()},
    )


def _attention_inputs(patterns: list[AttentionPattern]) -> dict[str, list[str]]:
    """The observed names of query, key and value by attention."""
    return {p.name: [f"{p.scores.name}:0", f"{p.scores.name}:1", f"{p.mix.name}:1"] for p in patterns}


def _sample(bundle: Bundle, work: Path, options: BuildOptions, progress: Progress) -> TokenMaps:
    settings = SamplingSettings(
        options.recipe.calibration.images,
        options.seed,
        batch_size=options.batch_size,
        matching=options.recipe.calibration.matching,
    )
    return sample_token_maps(Generator(bundle, options.session), settings, work / "sampling", progress)[0]


def _equalization(var: VAR, facts: StageFacts, calibration: Calibration, options: BuildOptions) -> Equalization:
    if options.rounding is not None:
        return Equalization({name: torch.from_numpy(found) for name, found in options.rounding.factors.items()})
    if not calibration.channel_ranges:
        return Equalization()
    magnitudes = {
        layer: torch.from_numpy(calibration.channel_ranges[linears[0]].magnitude())
        for layer, linears in facts.equalizable().items()
    }
    return choose_equalization(var, magnitudes, options.recipe.equalization.alpha)


def _equalized_ranges(facts: StageFacts, calibration: Calibration, equalization: Equalization) -> dict[str, Range]:
    """The ranges of the equalized model's layers, from what was observed before."""
    ranges = dict(calibration.stage_ranges)
    for layer, linears in facts.equalizable().items():
        if layer in equalization.factors:
            channels = calibration.channel_ranges[linears[0]]
            found = channels.equalized(equalization.factors[layer].numpy())
            ranges |= {name: found for name in linears if name in ranges}
    return ranges


def _pair_ranges(
    facts: StageFacts, name: str, calibration: Calibration, equalization: Equalization
) -> dict[str, Range]:
    """The ranges of both parts over all channels of the equalized input."""
    factors, reads = np.ones(1, np.float32), facts.layer(name).input
    if reads in equalization.factors:
        factors = equalization.factors[reads].numpy()
    return {part: channels.equalized(factors) for part, channels in calibration.pair_ranges[name].items()}


def _chosen_ranges(
    exposed: Bundle,
    ranges: Mapping[Observed, Range],
    calibration: Calibration,
    options: BuildOptions,
    progress: Progress,
) -> dict[Observed, Range]:
    """Ranges by the recipe's rule, from histograms of the equalized model's inputs."""
    images, step = min(HISTOGRAM_IMAGES, len(calibration.class_labels)), "observing distributions"
    progress(step, 0, images)
    counts = observe_histograms(
        exposed,
        ranges,
        calibration.class_labels[:images],
        calibration.token_maps[:images],
        options.session,
        lambda done: progress(step, done, images),
    )
    bits, rule = options.recipe.activations.bits, options.recipe.activations.range
    return {name: choose_range(found, counts[name], bits, rule) for name, found in ranges.items()}


def _chosen_theta(
    bundle: Bundle, facts: StageFacts, calibration: Calibration, options: BuildOptions, progress: Progress
) -> ThetaChoice:
    """theta within the recipe's budget, and places that are rarely too few."""
    recipe = options.recipe
    images, step = min(SCORE_IMAGES, len(calibration.class_labels)), "observing attention"
    progress(step, 0, images)
    with observed_bundle(bundle) as observed:
        statistics = collect_scores(
            observed,
            calibration.class_labels[:images],
            calibration.token_maps[:images],
            options.session,
            batch_size=options.batch_size,
            on_images=lambda done: progress(step, done, images),
        )
    bits = BitWidths(recipe.weights.bits, recipe.activations.bits)
    # The published form's costs, whichever form runs: both then expand the same tokens.
    return choose_theta(statistics, bundle.model, facts, bits, recipe.attention.budget, "duplicate")


def _rounder(options: BuildOptions) -> WeightRounder:
    weights, rounding = options.recipe.weights, options.rounding
    to_nearest = nearest(weights.bits, weights.range)
    if rounding is None:
        reduced = reduced_range(weights.bits, weights.range, options.recipe.activations.bits)
        return reduced if options.reduce_range else to_nearest

    def round_weight(name: str, weight: np.ndarray) -> QuantizedWeight:
        if name not in rounding.layers:
            return to_nearest(name, weight)
        rows = np.ascontiguousarray(weight.T)
        qparams = WeightQParams.choose(rows, 0, weights.bits, weights.range)
        return QuantizedWeight(np.ascontiguousarray(rounding.codes(name, rows).T), qparams.scale, qparams.qmin)

    return round_weight
