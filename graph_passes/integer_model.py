"""What of a model is integer, and how: decided once, from a recipe and the model's facts.

The graph (`pipeline`) and the torch simulation both follow what is decided here (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nextscale.graph_passes.layer_facts import TEXT, LayerFacts, StageFacts
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import AttentionWeights, Granularity, Recipe, WeightRecipe

# What is never below this, as nothing behind GELU is, spends few codes on its negative side.
LITTLE_BELOW_ZERO = -0.171
# 2 * 127 * 64 fits in 16 bits, 2 * 255 * 128 does not.
REDUCED_ATTENTION_BITS = 7


@dataclass(frozen=True)
class IntegerLayer:
    """How the input of one linear layer is quantized.

    Attributes:
        facts: of the layer.
        granularity: what shares a range; "tensor" where the range is known; no "pair" where an image is one row, or two
            that are not alike; and no "image" of a text.
        zero_point: of the codes, with a range for each token.
    """

    facts: LayerFacts
    granularity: Granularity
    zero_point: int | None = None

    def static_range(self, observed: Range) -> Range:
        """The range that is used, of one that was observed at each stage: [S] -> [S], or [1] for "tensor"."""
        return observed.over_stages() if self.granularity == "tensor" else observed


@dataclass(frozen=True)
class IntegerAttention:
    """How the products of attention are quantized.

    Attributes:
        names: of the second MatMul of each attention.
        bits: of all four operands.
        granularity: what shares a range of q, k and v: "tensor" is static, "image" dynamic.
        weights: the quantizer of the attention weights.
        shift_and_sum: the form, or "off".
    """

    names: tuple[str, ...]
    bits: int
    granularity: Literal["tensor", "image"]
    weights: AttentionWeights
    shift_and_sum: Literal["off", "duplicate", "residual"]


@dataclass(frozen=True)
class IntegerModel:
    """The integer form of a stage graph.

    Attributes:
        facts: of the stage graph.
        bits: of the codes of the layers' inputs.
        layers: the integer linear layers by name, in the graph's order; all others are float.
        attention: None: both products are float.
        weights: of the linear layers.
        coded_caches: whether stages carry keys and values as codes.
    """

    facts: StageFacts
    bits: int
    layers: Mapping[str, IntegerLayer]
    attention: IntegerAttention | None
    weights: WeightRecipe
    coded_caches: bool = False

    @classmethod
    def decide(cls, recipe: Recipe, facts: StageFacts, reduce_range: bool = False) -> IntegerModel:
        """What `recipe` makes of the layers.

        Args:
            recipe: how to quantize; a cache that is neither "float" nor "integer" is float.
            facts: of the stage graph.
            reduce_range: attention keeps every pair of products within 16 bits, for CPUs without VNNI.
        Raises:
            NextscaleError: the recipe names a layer that the model does not have.
        """
        recipe.require_layers([layer.name for layer in facts.layers])
        bits, layers = recipe.activations.bits, dict[str, IntegerLayer]()
        if recipe.precision == "fp32":
            return cls(facts, bits, layers, None, recipe.weights)
        for layer in facts.layers:
            choice = recipe.layer_choice(layer.name)
            if choice != "float":
                layers[layer.name] = _integer_layer(layer, choice, bits)
        attention = None
        if recipe.attention.products == "integer" and facts.attentions:
            to_text = facts.cross_attentions if recipe.attention.cross == "integer" else ()
            attention = IntegerAttention(
                (*facts.attentions, *to_text),
                attention_bits(bits, reduce_range),
                recipe.attention.granularity,
                recipe.attention.weights,
                recipe.attention.shift_and_sum,
            )
        return cls(facts, bits, layers, attention, recipe.weights, recipe.attention.cache == "integer")

    @cached_property
    def known(self) -> dict[str, Range]:
        """The ranges [1] of layers that need no observing."""
        return {name: layer.facts.known for name, layer in self.layers.items() if layer.facts.known is not None}

    @cached_property
    def static(self) -> list[str]:
        """The layers with observed static ranges."""
        return [name for name in self._of("tensor", "stage") if name not in self.known]

    @cached_property
    def pairs(self) -> list[str]:
        """The layers with static ranges for the row without the class, and for the difference that the class makes."""
        return self._of("pair")

    @cached_property
    def by_image(self) -> list[str]:
        """The layers with a range for each image, found at run time."""
        return self._of("image")

    @cached_property
    def by_token(self) -> dict[str, int]:
        """The zero points of layers with a range for each token, found at run time."""
        return {name: layer.zero_point for name, layer in self.layers.items() if layer.zero_point is not None}

    @property
    def static_attention(self) -> bool:
        """Whether the ranges of q, k and v are observed."""
        return self.attention is not None and self.attention.granularity == "tensor"

    def learned(self) -> list[LayerFacts]:
        """The layers whose rounding reconstruction learns, if the recipe asks for it."""
        return [layer.facts for layer in self.layers.values() if layer.facts.unit is not None]

    def _of(self, *granularities: Granularity) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.granularity in granularities]


def attention_bits(bits: int, reduce_range: bool) -> int:
    """Of attention's four operands; none of them is constant, so that their codes alone keep 16 bits."""
    return min(bits, REDUCED_ATTENTION_BITS) if reduce_range else bits


def _integer_layer(layer: LayerFacts, choice: Granularity, bits: int) -> IntegerLayer:
    if layer.known is not None:
        return IntegerLayer(layer, "tensor")
    if choice == "pair" and (layer.rows == 1 or not layer.alike):
        return IntegerLayer(layer, "stage")
    if choice == "image" and layer.part == TEXT:  # an image's range would see how far its batch is padded
        choice = "token"
    return IntegerLayer(layer, choice, token_zero_point(layer.minimum, bits) if choice == "token" else None)


def token_zero_point(minimum: float, bits: int) -> int:
    """The fixed zero point of a range for each token: in the middle, or low for what GELU leaves.

    One code below zero is the least that keeps GELU's negative side: at 2 bits too, 1 has less error than 2, which
    would leave a single code for all that is positive.
    """
    return max(1, 2**bits // 8) if minimum >= LITTLE_BELOW_ZERO else 2 ** (bits - 1)
