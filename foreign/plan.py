"""From a recipe and the samples to a plan: which operators become integer, how, and in which ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign.attentive_tokens import choose_attentive_tokens
from nextscale.foreign.learn_rounding import learn_rounding
from nextscale.foreign.observe import choose_ranges, observe_ranges
from nextscale.foreign.samples import Samples
from nextscale.foreign.survey import LARGEST, Survey
from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.convolutions import ConvolutionLayer, convolutions
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.fuse_epilogues import fuse_epilogues
from nextscale.graph_passes.fuse_linear import fuse_linear
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import BLOCKS, TEXT, LayerFacts, StageFacts
from nextscale.graph_passes.linear_layers import LinearLayer, WeightRounder, find_layers, nearest, reduced_range
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.qparams import QuantizedWeight, Range
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
from nextscale.graph_passes.quantize_convolutions import (
    Codes,
    ConvolutionRanges,
    choose_codes,
    quantize_convolutions,
)
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._session import SessionOptions


@dataclass(frozen=True)
class Plan:
    """What was decided about a normalized model.

    Attributes:
        recipe: how to quantize.
        integer: what is integer, and how.
        ranges: [1] of the inputs of static layers.
        magnitudes: of q, k and v, where attention is integer with static ranges.
        rounder: makes the integer weights.
        shift_and_sum: by attention, where the recipe asks for it.
        convolutions: the integer ones, with the ranges of what they read and give; 8 bits each.
        reduce_range: whether no pair of products leaves 16 bits.
    """

    recipe: Recipe
    integer: IntegerModel
    ranges: Mapping[str, Range]
    magnitudes: Mapping[str, Magnitudes] | None
    rounder: WeightRounder
    shift_and_sum: Mapping[str, ShiftAndSum]
    convolutions: Mapping[str, ConvolutionRanges]
    reduce_range: bool

    @property
    def words(self) -> list[str]:
        """A line on what of the recipe does not hold for some layers."""
        layers = [layer for layer in self.integer.layers.values() if layer.granularity == "token"]
        other = [item for item in layers if self.recipe.layer_choice(item.facts.name) == "image"]
        if not other:
            return []
        what = "1 layer has" if len(other) == 1 else f"{len(other)} layers have"
        return [
            f'recipe {self.recipe.name}: {what} ranges by token instead of "image", since the first axis is not '
            "known to be the batch's"
        ]

    def apply(self, model: ir.Model, fused: bool = False) -> ir.Model:
        """The integer model; with operators of nextscale-ops where they fit, if it is to be fused."""
        integer, model = self.integer, self.apply_others(model)
        if fused:
            fitting = replace(integer, layers={name: integer.layers[name] for name in self._of_three_axes(model)})
            model = fuse_epilogues(fuse_linear(self._apply_layers(model, fitting, products=False), fitting))
            others = {name: layer for name, layer in integer.layers.items() if name not in fitting.layers}
            integer = replace(integer, layers=others)
        return self._apply_layers(model, integer, products=True)

    def apply_others(self, model: ir.Model) -> ir.Model:
        """The model with its attentions and convolutions integer, and its linear layers in float."""
        attention = self.integer.attention
        if attention is not None:
            model = self.apply_attention(model, attention.names)
        return self.apply_convolutions(model)

    def apply_layers(self, part: ir.Model) -> ir.Model:
        """A part of `apply_others`' model with its linear layers integer, too."""
        names = {node.name for node in part.graph}
        here = self.without([name for name in self.can_be_left if name not in names])
        return self._apply_layers(part, here.integer, products=True)

    def _apply_layers(self, model: ir.Model, integer: IntegerModel, products: bool) -> ir.Model:
        rounding = self.rounder, self.recipe.weights.packed
        ranges = {name: of_one for name, of_one in self.ranges.items() if name in integer.layers}
        model = quantize_linear(model, ranges, None, integer.bits, *rounding, products=products)
        model = quantize_linear_by_image(model, dict.fromkeys(integer.by_image, 1), integer.bits, *rounding)
        return quantize_linear_by_token(model, integer.by_token, integer.bits, *rounding)

    def _of_three_axes(self, model: ir.Model) -> list[str]:
        """The integer layers that operators of nextscale-ops can take: their inputs are [R, l, K]."""
        layers = find_layers(model.graph, set(self.integer.layers))
        shapes = {layer.name: layer.activation.shape for layer in layers}
        return [name for name, shape in shapes.items() if shape is not None and len(shape) == 3]

    @property
    def can_be_left(self) -> list[str]:
        """The linear layers and convolutions, which a recipe can leave in float one by one."""
        return [*self.integer.layers, *self.convolutions]

    def without(self, names: Collection[str]) -> Plan:
        """With some linear layers and convolutions left in float."""

        def others(of: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in of.items() if name not in names}

        integer = replace(self.integer, layers=others(self.integer.layers))
        return replace(self, integer=integer, ranges=others(self.ranges), convolutions=others(self.convolutions))

    def convolution_codes(self, model: ir.Model) -> dict[str, Codes]:
        """Of what its convolutions read and give, by the values' names, where all of them are integer."""
        return choose_codes(model, self.convolutions, self.recipe.equalization.alpha)

    def apply_convolutions(
        self, model: ir.Model, names: Collection[str] | None = None, codes: Mapping[str, Codes] | None = None
    ) -> ir.Model:
        """The model with its convolutions integer, or with some of them, whose codes may be known."""
        chosen = {name: of for name, of in self.convolutions.items() if names is None or name in names}
        return quantize_convolutions(model, chosen, self.recipe.equalization.alpha, self.reduce_range, codes)

    def apply_attention(self, model: ir.Model, names: Sequence[str]) -> ir.Model:
        """The model with some of its attentions integer."""
        attention = self.integer.attention
        assert attention is not None
        how = attention.weights, attention.bits, 1, self.magnitudes
        return quantize_attention(model, *how, self.shift_and_sum or None, None, names)


def make_plan(
    model: ir.Model,
    found: Survey,
    recipe: Recipe,
    samples: Samples,
    work: Path,
    options: SessionOptions,
    reduce_range: bool = False,
) -> tuple[Plan, Survey]:
    """Observe the model on the samples, and decide.

    Args:
        model: normalized.
        found: in it.
        recipe: how to quantize.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
        reduce_range: for CPUs without VNNI, no pair of products leaves 16 bits.
    Returns:
        The plan; and the survey, where operators whose inputs are not finite are refused, too.
    Raises:
        NextscaleError: the recipe names a layer that the model does not have, or a convolution with ranges that it
            cannot have.
    """
    recipe.require_layers([item.name for item in found.found if item.kind in ("linear layer", "convolution")])
    recipe.require_convolutions([item.name for item in found.found if item.kind == "convolution"])
    patterns = {pattern.name: pattern for pattern in attention_patterns(model.graph)}
    integer_attention = recipe.attention.products == "integer"
    attentions = [patterns[item.name] for item in found.taken("attention")] if integer_attention else []
    kernels = [layer for layer in convolutions(model.graph) if layer.name in found.names("convolution")]
    keys = [Input(item.name) for item in found.taken("linear layer")]
    keys += [operand for pattern in attentions for operand in _operands(pattern)]
    channels = {end: layer.other_axes for layer in kernels for end in _ends(layer)}
    by_channel = observe_ranges(model, [*keys, *channels], samples, work, options, channels)
    # What a convolution gives may be what a layer or an attention reads: these have one range for all channels.
    observed = {key: of_one.over_stages() for key, of_one in by_channel.items()}
    found = found.without(_not_finite(observed, attentions, kernels))
    kernels = [
        layer
        for layer in kernels
        if layer.name in found.names("convolution") and recipe.layer_choice(layer.name) != "float"
    ]
    recipe = _of_one_stage(recipe.of_layers(found.names("linear layer")))
    integer = IntegerModel.decide(recipe, _facts(model, found, observed), reduce_range)
    running = samples, work, options
    static = {Input(name): observed[Input(name)] for name in integer.static}
    ranges = choose_ranges(model, static, integer.bits, recipe.activations.range, *running)
    magnitudes = None
    if integer.static_attention:
        magnitudes = {
            pattern.name: Magnitudes.of(*(observed[key] for key in _operands(pattern)))
            for pattern in attentions
            if pattern.name in found.names("attention")
        }
    layers = find_layers(model.graph, found.names("linear layer"))
    integer_layers = [layer for layer in layers if layer.name in integer.layers]
    return (
        Plan(
            recipe,
            integer,
            {key.node: of_one for key, of_one in ranges.items()},
            magnitudes,
            _rounder(model, integer_layers, recipe, *running, reduce_range),
            _shift_and_sum(model, layers, [patterns[name] for name in _integer_attentions(integer)], recipe, *running),
            {layer.name: ConvolutionRanges(*(by_channel[end] for end in _ends(layer))) for layer in kernels},
            reduce_range,
        ),
        found,
    )


def _of_one_stage(recipe: Recipe) -> Recipe:
    """Without ranges by stage or by pair, of which a model without stages and guided rows has one for a layer."""
    layers = {end: "tensor" if how in ("stage", "pair") else how for end, how in recipe.layers.items()}
    return replace(recipe, layers=layers)


def _rounder(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    recipe: Recipe,
    samples: Samples,
    work: Path,
    options: SessionOptions,
    reduce_range: bool,
) -> WeightRounder:
    """Rounds each layer's weight once, for the graph and for the layer's own error."""
    weights = recipe.weights
    if recipe.learned:
        learned = learn_rounding(model, layers, weights, samples, work, options)
        return lambda name, weight: learned[name]
    if reduce_range:
        to_nearest = reduced_range(weights.bits, weights.range, recipe.activations.bits)
    else:
        to_nearest = nearest(weights.bits, weights.range)
    known = dict[str, QuantizedWeight]()

    def round_once(name: str, weight: NDArray[np.float32]) -> QuantizedWeight:
        if name not in known:
            known[name] = to_nearest(name, weight)
        return known[name]

    return round_once


def _shift_and_sum(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    attentions: Sequence[AttentionPattern],
    recipe: Recipe,
    samples: Samples,
    work: Path,
    options: SessionOptions,
) -> dict[str, ShiftAndSum]:
    form = recipe.attention.shift_and_sum
    if form == "off" or not attentions:
        return {}
    budget = recipe.attention.budget
    return choose_attentive_tokens(model, attentions, layers, form, budget, samples, work, options)


def _integer_attentions(integer: IntegerModel) -> tuple[str, ...]:
    """Their names."""
    return () if integer.attention is None else integer.attention.names


def _operands(pattern: AttentionPattern) -> tuple[Input, Input, Input]:
    """Query, key and value."""
    scores, mix = str(pattern.scores.name), str(pattern.mix.name)
    return Input(scores), Input(scores, 1), Input(mix, 1)


def _ends(layer: ConvolutionLayer) -> tuple[Input, Input]:
    """Where a convolution's input and its result can be observed."""
    reader = layer.reader()
    assert reader is not None
    return Input(layer.name), reader


def _not_finite(
    observed: Mapping[Input, Range], attentions: Sequence[AttentionPattern], kernels: Sequence[ConvolutionLayer]
) -> dict[str, str]:
    """Operators whose inputs have no range, and why."""
    bad = {key for key, found in observed.items() if not (np.abs([*found.minimum, *found.maximum]) < LARGEST).all()}
    told = f"not finite on the samples, or beyond {LARGEST:g}"
    reasons = {key.node: f"its input is {told}" for key in bad}
    for pattern in attentions:
        if bad.intersection(_operands(pattern)):
            reasons[pattern.name] = f"its query, key or value is {told}"
    for layer in kernels:
        if bad.intersection(_ends(layer)):
            reasons[layer.name] = f"its input or its result is {told}"
    return reasons


def _facts(model: ir.Model, found: Survey, observed: Mapping[Input, Range]) -> StageFacts:
    """Of a graph of one stage, whose images are the entries of the first axis, where that is the batch's."""
    batch = {value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)}
    batch = {size for size in batch if not isinstance(size, int)}
    taken = {item.name: item for item in found.taken("linear layer")}
    layers = []
    for layer in find_layers(model.graph, set(taken)):
        shape = taken[layer.name].shape
        assert shape is not None
        assert layer.activation.shape is not None
        least = float(observed[Input(layer.name)].minimum[0])
        # Elsewhere an entry may hold parts of several samples, as one of texts holds others' padding.
        part = BLOCKS if not batch or layer.activation.shape[0] in batch else TEXT
        layers.append(LayerFacts(layer.name, shape, (1,), part, str(layer.activation.name), rows=1, minimum=least))
    return StageFacts(tuple(layers), tuple(item.name for item in found.taken("attention")), "", "")
