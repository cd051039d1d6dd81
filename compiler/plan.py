"""From a recipe to a plan: sample, observe and decide what the passes need to make the stage graph integer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from nextscale.calib_data.attention_scores import collect_scores, observed_bundle
from nextscale.calib_data.calibrate import Calibration, CalibrationSettings, calibrate
from nextscale.calib_data.choose_theta import ThetaChoice, choose_theta
from nextscale.calib_data.observe_histograms import Observed, choose_range, observe_histograms
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.linear_layers import WeightRounder, linear_layers, nearest, reduced_range
from nextscale.graph_passes.observe_ranges import PARTS, expose_inputs, observe_channels, observe_pairs, observe_ranges
from nextscale.graph_passes.pipeline import StageLayers, StagePlan, stage_layers
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
from nextscale.models.var.equalization import Equalization, choose_equalization, equalizable_layers
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
    layers = stage_layers(stage_model, recipe)
    _require_rounding(source.var, stage_model, layers, options)
    patterns = attention_patterns(stage_model.graph)
    attention_inputs = _attention_inputs(patterns) if _static_attention(recipe) else {}
    observed = [*layers.static, *layers.dynamic, *(name for names in attention_inputs.values() for name in names)]
    # Layers that share an input see the same channels: the first of them is observed for all.
    channels = [linears[0] for linears in equalizable_layers(source.var).values()]
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
    equalization = _equalization(source.var, calibration, options)
    ranges = _equalized_ranges(source.var, calibration, equalization)
    static: dict[Observed, Range] = {(name, None): ranges[name] for name in layers.static}
    static |= {
        (name, part): found
        for name in layers.pairs
        for part, found in _pair_ranges(source.var, name, calibration, equalization).items()
    }
    if static and recipe.activations.range != "max":
        exposed = work / "equalized"
        exposed.mkdir()
        equalized = build_stage_graph(source.var, source.vqvae.quantize, equalization)
        write(exposed, expose_inputs(equalized, [*layers.static, *layers.pairs]), decoder_model)
        static = _chosen_ranges(Bundle.open(exposed), static, calibration, options, progress)
    by_layer = {
        name: _over_stages(static[name, None]) if choice == "tensor" else static[name, None]
        for name, choice in layers.static.items()
    }
    shift_and_sum = None
    if recipe.attention.shift_and_sum != "off":
        choice = options.theta or _chosen_theta(bundle, calibration, options, progress)
        form, report["shift_and_sum"] = recipe.attention.shift_and_sum, asdict(choice)
        shift_and_sum = ShiftAndSum(form, choice.theta, choice.rows, options.count_overflow)
    stage = StagePlan(
        recipe,
        by_layer | _class_ranges(source.var, layers.by_class),
        {name: PairRanges(*(static[name, part] for part in PARTS)) for name in layers.pairs},
        {name: float(ranges[name].minimum.min()) for name in layers.dynamic},
        _rounder(options),
        {name: _magnitudes(calibration, names) for name, names in attention_inputs.items()} or None,
        shift_and_sum,
        options.reduce_range,
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


def _require_rounding(var: VAR, stage_model: ir.Model, layers: StageLayers, options: BuildOptions) -> None:
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
    weights = {layer.name: layer.weight.const_value for layer in linear_layers(stage_model.graph)}
    shapes = {name: tuple(weight.shape.numpy())[::-1] for name, weight in weights.items() if weight is not None}
    equalized = equalizable_layers(var) if recipe.equalization.alpha > 0 else {}
    rounding.require(
        recipe,
        {name: shapes[name] for name in layers.names()},
        {layer: shapes[linears[0]][1:] for layer, linears in equalized.items()},
    )


def _static_attention(recipe: Recipe) -> bool:
    return recipe.attention.products == "integer" and recipe.attention.granularity == "tensor"


def _attention_inputs(patterns: list[AttentionPattern]) -> dict[str, list[str]]:
    """The observed names of query, key and value by attention."""
    return {p.name: [f"{p.scores.name}:0", f"{p.scores.name}:1", f"{p.mix.name}:1"] for p in patterns}


def _magnitudes(calibration: Calibration, names: list[str]) -> Magnitudes:
    ranges = (calibration.stage_ranges[name] for name in names)
    return Magnitudes(*(float(max(-found.minimum.min(), found.maximum.max())) for found in ranges))


def _sample(bundle: Bundle, work: Path, options: BuildOptions, progress: Progress) -> TokenMaps:
    settings = SamplingSettings(
        options.recipe.calibration.images,
        options.seed,
        batch_size=options.batch_size,
        matching=options.recipe.calibration.matching,
    )
    return sample_token_maps(Generator(bundle, options.session), settings, work / "sampling", progress)[0]


def _equalization(var: VAR, calibration: Calibration, options: BuildOptions) -> Equalization:
    if options.rounding is not None:
        return Equalization({name: torch.from_numpy(found) for name, found in options.rounding.factors.items()})
    if not calibration.channel_ranges:
        return Equalization()
    magnitudes = {
        layer: torch.from_numpy(calibration.channel_ranges[linears[0]].magnitude())
        for layer, linears in equalizable_layers(var).items()
    }
    return choose_equalization(var, magnitudes, options.recipe.equalization.alpha)


def _equalized_ranges(var: VAR, calibration: Calibration, equalization: Equalization) -> dict[str, Range]:
    """The ranges of the equalized model's layers, from what was observed before."""
    ranges = dict(calibration.stage_ranges)
    for layer, linears in equalizable_layers(var).items():
        if layer in equalization.factors:
            channels = calibration.channel_ranges[linears[0]]
            found = channels.equalized(equalization.factors[layer].numpy())
            ranges |= {name: found for name in linears if name in ranges}
    return ranges


def _pair_ranges(var: VAR, name: str, calibration: Calibration, equalization: Equalization) -> dict[str, Range]:
    """The ranges of both parts over all channels of the equalized input."""
    factors = np.ones(1, np.float32)
    for layer, linears in equalizable_layers(var).items():
        if name in linears and layer in equalization.factors:
            factors = equalization.factors[layer].numpy()
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


def _over_stages(found: Range) -> Range:
    return Range(found.minimum.min(keepdims=True), found.maximum.max(keepdims=True))


def _class_ranges(var: VAR, layers: list[str]) -> dict[str, Range]:
    """The range of what adaLN's linear layers see: SiLU of the class embeddings, of all classes at once."""
    activated = F.silu(var.class_emb.weight)
    both = Range(*(np.array([extreme.item()], np.float32) for extreme in (activated.min(), activated.max())))
    return dict.fromkeys(layers, both)


def _chosen_theta(bundle: Bundle, calibration: Calibration, options: BuildOptions, progress: Progress) -> ThetaChoice:
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
    return choose_theta(statistics, bundle.model, bits, recipe.attention.budget, "duplicate")


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
