"""What makes an integer bundle of float32 graphs: which layers become integer, and the passes in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.linear_layers import WeightRounder, linear_layers
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_pairs import PairRanges, quantize_linear_pairs
from nextscale.graph_passes.recipe import LayerChoice, Recipe
from nextscale.graph_passes.split_rows import split_rows

# They depend on the class alone; their input's range is known from the class embedding, without observing.
CLASS_LAYER = "ada_lin"
# An image is two rows of every layer, with its class and without; of these it is one: guidance is mixed before the
# head, and both rows begin with the same token map.
UNGUIDED_LAYERS = frozenset({"head", "word_embed"})
GUIDED_ROWS = 2
GUIDED_AXIS = "2B"
# tanh-GELU's minimum is -0.1700; a layer behind it spends no codes on what never comes.
GELU_MINIMUM = -0.171
# 2 * 127 * 64 fits in 16 bits, 2 * 255 * 128 does not.
REDUCED_ATTENTION_BITS = 7


@dataclass(frozen=True)
class StageLayers:
    """The stage graph's linear layers that a recipe makes integer, by where their range comes from.

    Attributes:
        static: choices "tensor" and "stage", and "pair" where there is only one row.
        pairs: choice "pair".
        dynamic: choices "image" and "token".
        by_class: adaLN's, whose range all classes together determine.
    """

    static: Mapping[str, LayerChoice]
    pairs: list[str]
    dynamic: Mapping[str, LayerChoice]
    by_class: list[str]

    def names(self) -> list[str]:
        return [*self.static, *self.pairs, *self.dynamic, *self.by_class]


def stage_layers(stage_model: ir.Model, recipe: Recipe) -> StageLayers:
    """The linear layers that `recipe` makes integer.

    Raises:
        NextscaleError: the recipe names a layer that the model does not have.
    """
    names = [layer.name for layer in linear_layers(stage_model.graph)]
    recipe.require_layers(names)
    choices = {name: choice for name in names if (choice := recipe.layer_choice(name)) != "float"}
    by_class = [name for name in choices if CLASS_LAYER in name]
    observed = {name: choice for name, choice in choices.items() if name not in by_class}
    pairs = [name for name, choice in observed.items() if choice == "pair" and name not in UNGUIDED_LAYERS]
    dynamic = {name: choice for name, choice in observed.items() if choice in ("image", "token")}
    static = {name: choice for name, choice in observed.items() if name not in pairs and name not in dynamic}
    return StageLayers(static, pairs, dynamic, by_class)


@dataclass(frozen=True)
class StagePlan:
    """What calibration decided about the stage graph.

    Attributes:
        recipe: how to quantize.
        ranges: of the inputs of static and class layers: [S] by stage, or [1].
        pair_ranges: of the inputs of layers with a pair.
        minima: the smallest input that calibration saw, of layers with a range for each token.
        rounder: makes the integer weights.
        magnitudes: of q, k and v, where attention is integer with static ranges.
        shift_and_sum: where the recipe asks for it.
        reduce_range: attention keeps every pair of products within 16 bits, as `rounder` is to do for the layers.
    """

    recipe: Recipe
    ranges: Mapping[str, Range]
    pair_ranges: Mapping[str, PairRanges]
    minima: Mapping[str, float]
    rounder: WeightRounder
    magnitudes: Mapping[str, Magnitudes] | None = None
    shift_and_sum: ShiftAndSum | None = field(default=None)
    reduce_range: bool = False


def quantize_stage(stage_model: ir.Model, plan: StagePlan) -> ir.Model:
    """The integer stage graph."""
    recipe = plan.recipe
    layers, bits = stage_layers(stage_model, recipe), recipe.activations.bits
    model = stage_model
    # Attention first: its pattern is float MatMuls, and what is around it does not matter to it.
    if recipe.attention.products == "integer":
        weights, of_all = recipe.attention.weights, attention_bits(bits, plan.reduce_range)
        model = quantize_attention(
            model, weights, of_all, GUIDED_ROWS, plan.magnitudes, plan.shift_and_sum, stage_input="stage"
        )
    # The ways of choosing ranges touch different layers and could stand in any order.
    model = quantize_linear(model, plan.ranges, "stage", bits, plan.rounder, recipe.weights.packed)
    model = quantize_linear_pairs(model, plan.pair_ranges, "stage", bits, plan.rounder, recipe.weights.packed)
    model = split_rows(model, GUIDED_AXIS) if plan.pair_ranges else model
    rows = {name: rows_of_image(name) for name, choice in layers.dynamic.items() if choice == "image"}
    model = quantize_linear_by_image(model, rows, bits, plan.rounder, recipe.weights.packed)
    tokens = [name for name, choice in layers.dynamic.items() if choice == "token"]
    zero_points = {name: token_zero_point(plan.minima[name], bits) for name in tokens}
    return quantize_linear_by_token(model, zero_points, bits, plan.rounder, recipe.weights.packed)


def attention_bits(bits: int, reduce_range: bool) -> int:
    """Of attention's four operands; none of them is constant, so that their codes alone keep 16 bits."""
    return min(bits, REDUCED_ATTENTION_BITS) if reduce_range else bits


def rows_of_image(layer: str) -> int:
    """How many rows of a layer's input are one image."""
    return 1 if layer in UNGUIDED_LAYERS else GUIDED_ROWS


def token_zero_point(minimum: float, bits: int) -> int:
    """The fixed zero point of a range for each token: in the middle, or low for what GELU leaves."""
    return max(1, 2 ** (bits - 3)) if minimum >= GELU_MINIMUM and bits >= 3 else 2 ** (bits - 1)
