"""What makes an int8 bundle of float32 graphs: which layers become integer, and the passes in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_decoder import observed_nodes, quantize_decoder
from nextscale.graph_passes.quantize_linear import linear_layers, quantize_linear

# 32 inputs a token: next to no work, and its error would reach every later layer (docs/decisions/0003).
FLOAT_LAYERS = frozenset({"word_embed"})
# They depend on the class alone; their input's range is known from the class embedding, without observing.
CLASS_LAYER = "ada_lin"


@dataclass(frozen=True)
class StageLayers:
    """The stage graph's linear layers by where their range comes from."""

    observed: list[str]
    by_class: list[str]


def stage_layers(stage_model: ir.Model) -> StageLayers:
    """The linear layers that int8 makes integer."""
    names = [layer.name for layer in linear_layers(stage_model.graph) if layer.name not in FLOAT_LAYERS]
    return StageLayers([n for n in names if CLASS_LAYER not in n], [n for n in names if CLASS_LAYER in n])


def decoder_layers(decoder_model: ir.Model) -> list[str]:
    """The decoder's nodes whose input's range int8 needs."""
    return observed_nodes(decoder_model)


def quantize_int8(
    stage_model: ir.Model,
    decoder_model: ir.Model,
    stage_ranges: Mapping[str, Range],
    decoder_ranges: Mapping[str, Range],
) -> tuple[ir.Model, ir.Model]:
    """Static int8: u8 activations, s8 weights a channel, attention in float; returns (stage, decoder)."""
    stage_model = quantize_linear(stage_model, stage_ranges, stage_input="stage")
    decoder_model = quantize_decoder(decoder_model, decoder_ranges)
    return stage_model, decoder_model
