"""The int8 text encoder: its linear layers u8 x s8, its table of embeddings in halves, all else in float.

Ranges are found at run time for each token: nothing is calibrated, and no text of a batch sees another. Layers whose
inputs have a few values that are much larger than the others read two bytes of each number
(docs/decisions/0014-text-encoder.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from nextscale.graph_passes.fuse_epilogues import fuse_epilogues
from nextscale.graph_passes.fuse_linear import fuse_linear
from nextscale.graph_passes.fuse_two_bytes import fuse_two_bytes
from nextscale.graph_passes.halve_table import halve_table
from nextscale.graph_passes.integer_model import IntegerLayer, IntegerModel, token_zero_point
from nextscale.graph_passes.layer_facts import LayerFacts, StageFacts
from nextscale.graph_passes.linear_layers import WeightRounder, linear_layer_shapes, linear_layers
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_two_bytes import quantize_linear_two_bytes
from nextscale.graph_passes.recipe import WeightRecipe

BITS = 8
ZERO_POINT = token_zero_point(-math.inf, BITS)
TABLE = "shared.weight"


def quantize_text_encoder(model: ir.Model, wide: Collection[str], rounder: WeightRounder) -> ir.Model:
    """The integer graph of stock operators.

    Args:
        model: the float graph: token_ids -> text_features, its embeddings in the initializer TABLE.
        wide: names of the layers that read two bytes of each number.
        rounder: makes the integer weights; for CPUs without VNNI `reduced_range` beside activations of 8 bits.
    Raises:
        ValueError: `wide` names no linear layer of the graph, or the graph has no table.
    """
    names = [layer.name for layer in linear_layers(model.graph)]
    model = quantize_linear_two_bytes(model, wide, rounder)
    zero_points = {name: ZERO_POINT for name in names if name not in wide}
    return halve_table(quantize_linear_by_token(model, zero_points, BITS, rounder), TABLE)


def fuse_text_encoder(stock: ir.Model, wide: Collection[str]) -> ir.Model:
    """The same with nextscale-ops' operators where they serve, over the same constants.

    Args:
        stock: what `quantize_text_encoder` gave.
        wide: as it was given.
    """
    model = fuse_linear(stock, _layers_of_one_byte(stock, wide))
    return fuse_epilogues(fuse_two_bytes(model, wide))


def _layers_of_one_byte(stock: ir.Model, wide: Collection[str]) -> IntegerModel:
    """What `fuse_linear` asks about them: one stage of texts, a text a row."""
    facts = StageFacts(
        tuple(
            LayerFacts(name, shape, (), "text_encoder", name, rows=1)
            for name, shape in linear_layer_shapes(stock.graph).items()
            if name not in wide
        ),
        attentions=(),
        guided_axis="",
        stage_input="",
    )
    layers = {layer.name: IntegerLayer(layer, "token", ZERO_POINT) for layer in facts.layers}
    return IntegerModel(facts, BITS, layers, None, WeightRecipe())
