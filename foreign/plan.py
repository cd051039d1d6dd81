"""From a recipe and the samples to a plan: which operators become integer, how, and in which ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign.attentive_tokens import choose_attentive_tokens
from nextscale.foreign.learn_rounding import learn_rounding
from nextscale.foreign.observe import choose_ranges, observe_ranges
from nextscale.foreign.samples import Samples
from nextscale.foreign.survey import LARGEST, Survey
from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import BLOCKS, TEXT, LayerFacts, StageFacts
from nextscale.graph_passes.linear_layers import LinearLayer, WeightRounder, find_layers, nearest
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.qparams import QuantizedWeight, Range
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
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
    """

    recipe: Recipe
    integer: IntegerModel
    ranges: Mapping[str, Range]
    magnitudes: Mapping[str, Magnitudes] | None
    rounder: WeightRounder
    shift_and_sum: Mapping[str, ShiftAndSum]

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

    def apply(self, model: ir.Model) -> ir.Model:
        """The integer model."""
        integer, rounding = self.integer, (self.rounder, self.recipe.weights.packed)
        if integer.attention is not None:
            model = self.apply_attention(model, integer.attention.names)
        model = quantize_linear(model, self.ranges, None, integer.bits, *rounding, products=True)
        model = quantize_linear_by_image(model, dict.fromkeys(integer.by_image, 1), integer.bits, *rounding)
        return quantize_linear_by_token(model, integer.by_token, integer.bits, *rounding)

    def apply_attention(self, model: ir.Model, names: Sequence[str]) -> ir.Model:
        """The model with some of its attentions integer."""
        attention = self.integer.attention
        assert attention is not None
        how = attention.weights, attention.bits, 1, self.magnitudes
        if not self.shift_and_sum:
            return quantize_attention(model, *how, None, None, names)
        for name in names:
            model = quantize_attention(model, *how, self.shift_and_sum[name], None, [name])
        return model


def make_plan(
    model: ir.Model, found: Survey, recipe: Recipe, samples: Samples, work: Path, options: SessionOptions
) -> tuple[Plan, Survey]:
    """Observe the model on the samples, and decide.

    Args:
        model: normalized.
        found: in it.
        recipe: how to quantize.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
    Returns:
        The plan; and the survey, where operators whose inputs are not finite are refused, too.
    Raises:
        NextscaleError: the recipe names a layer that the model does not have.
    """
    patterns = {pattern.name: pattern for pattern in attention_patterns(model.graph)}
    integer_attention = recipe.attention.products == "integer"
    attentions = [patterns[item.name] for item in found.taken("attention")] if integer_attention else []
    keys = [Input(item.name) for item in found.taken("linear layer")]
    keys += [operand for pattern in attentions for operand in _operands(pattern)]
    observed = observe_ranges(model, keys, samples, work, options)
    found = found.without(_not_finite(observed, attentions))
    recipe.require_layers([item.name for item in found.found if item.kind == "linear layer"])
    recipe = recipe.of_layers([item.name for item in found.taken("linear layer")])
    integer = IntegerModel.decide(recipe, _facts(model, found, observed))
    static = {Input(name): observed[Input(name)] for name in integer.static}
    ranges = choose_ranges(model, static, integer.bits, recipe.activations.range, samples, work, options)
    magnitudes = None
    if integer.static_attention:
        taken = {item.name for item in found.taken("attention")}
        magnitudes = {
            pattern.name: Magnitudes.of(*(observed[key] for key in _operands(pattern)))
            for pattern in attentions
            if pattern.name in taken
        }
    layers = find_layers(model.graph, {item.name for item in found.taken("linear layer")})
    integer_layers = [layer for layer in layers if layer.name in integer.layers]
    running = samples, work, options
    return (
        Plan(
            recipe,
            integer,
            {key.node: of_one for key, of_one in ranges.items()},
            magnitudes,
            _rounder(model, integer_layers, recipe, *running),
            _shift_and_sum(model, layers, [patterns[name] for name in _integer_attentions(integer)], recipe, *running),
        ),
        found,
    )


def _rounder(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    recipe: Recipe,
    samples: Samples,
    work: Path,
    options: SessionOptions,
) -> WeightRounder:
    """Rounds each layer's weight once, for the graph and for the layer's own error."""
    weights = recipe.weights
    if not recipe.learned:
        known, to_nearest = dict[str, QuantizedWeight](), nearest(weights.bits, weights.range)

        def round_once(name: str, weight: NDArray[np.float32]) -> QuantizedWeight:
            if name not in known:
                known[name] = to_nearest(name, weight)
            return known[name]

        return round_once
    learned = learn_rounding(model, layers, weights, samples, work, options)
    return lambda name, weight: learned[name]


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


def _not_finite(observed: Mapping[Input, Range], attentions: Sequence[AttentionPattern]) -> dict[str, str]:
    """Operators whose inputs have no range, and why."""
    bad = {key for key, found in observed.items() if not (np.abs([*found.minimum, *found.maximum]) < LARGEST).all()}
    told = f"not finite on the samples, or beyond {LARGEST:g}"
    reasons = {key.node: f"its input is {told}" for key in bad}
    for pattern in attentions:
        if bad.intersection(_operands(pattern)):
            reasons[pattern.name] = f"its query, key or value is {told}"
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
