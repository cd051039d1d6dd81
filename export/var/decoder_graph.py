"""The VQVAE's decoder as an ONNX graph: f_hat float32 [B, Cvae, h, w] -> images uint8 [B, H, W, 3]."""

from __future__ import annotations

import onnx_ir as ir

from nextscale.export.autoencoder_parts import AutoencoderParts, to_picture
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.models.var.vqvae import VQVAE


def build_decoder_graph(vqvae: VQVAE) -> ir.Model:
    """The float32 graph of post_quant_conv and decoder, ending in the uint8 picture."""
    config = vqvae.config
    side, size = config.patch_nums[-1], config.image_size
    builder = new_builder("decoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    f_hat = builder.input("f_hat", ir.DataType.FLOAT, ["B", config.z_channels, side, side])

    h = parts.conv("post_quant_conv", vqvae.post_quant_conv, f_hat)
    h = parts.decoder("decoder", vqvae.decoder, h)
    add_output(builder, to_picture(builder.op, h), "images", ir.DataType.UINT8, ["B", size, size, 3])
    return finish(builder)
