"""The VQVAE's decoder as an ONNX graph: f_hat float32 [B, Cvae, h, w] -> images uint8 [B, H, W, 3]."""

from __future__ import annotations

from typing import cast

import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.autoencoder_parts import AutoencoderParts
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.models.autoencoder import Level
from nextscale.models.var.vqvae import VQVAE


def build_decoder_graph(vqvae: VQVAE) -> ir.Model:
    """The float32 graph of post_quant_conv and decoder, ending in the uint8 picture."""
    config = vqvae.config
    side, size = config.patch_nums[-1], config.image_size
    builder = new_builder("decoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    decoder = vqvae.decoder
    f_hat = builder.input("f_hat", ir.DataType.FLOAT, ["B", config.z_channels, side, side])

    h = parts.conv("post_quant_conv", vqvae.post_quant_conv, f_hat)
    h = parts.conv("decoder.conv_in", decoder.conv_in, h)
    h = parts.middle("decoder.mid", decoder.mid, h)
    for i in reversed(range(len(decoder.up))):
        h = parts.level(f"decoder.up.{i}", cast(Level, decoder.up[i]), h)
    h = parts.silu(parts.group_norm("decoder.norm_out", decoder.norm_out, h))
    h = parts.conv("decoder.conv_out", decoder.conv_out, h)
    add_output(builder, to_picture(builder.op, h), "images", ir.DataType.UINT8, ["B", size, size, 3])
    return finish(builder)


def to_picture(op: OpBuilder, x: ir.Value) -> ir.Value:
    """round(255 * clip((x + 1) / 2, 0, 1)): float32 [B, 3, H, W] -> uint8 [B, H, W, 3]."""
    scaled = op.Add(op.Mul(x, 127.5), 127.5)
    clipped = op.Clip(op.Round(scaled), 0.0, 255.0)
    return op.Transpose(op.Cast(clipped, to=ir.DataType.UINT8), perm=[0, 2, 3, 1])
