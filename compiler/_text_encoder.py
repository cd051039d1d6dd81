"""The int8 graphs of a text encoder, whatever the recipe says of the transformer."""

from __future__ import annotations

import onnx_ir as ir

from nextscale.compiler.family import TextEncoder
from nextscale.graph_passes.linear_layers import nearest, reduced_range
from nextscale.graph_passes.quantize_text_encoder import BITS, fuse_text_encoder, quantize_text_encoder


def text_encoder_graphs(encoder: TextEncoder, reduce_range: bool) -> tuple[ir.Model, ir.Model]:
    """The stock and the fused graph.

    Args:
        encoder: in float32.
        reduce_range: keep every pair of products within 16 bits.
    """
    rounder = reduced_range(BITS, "max", BITS) if reduce_range else nearest(BITS)
    stock = quantize_text_encoder(encoder.graph, encoder.wide, rounder)
    return stock, fuse_text_encoder(stock, encoder.wide)
