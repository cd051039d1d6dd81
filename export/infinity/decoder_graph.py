"""The BSQ VAE's decoder as an ONNX graph: f_hat float32 [B, d, h, w] -> images uint8 [B, H, W, 3], of any size."""

from __future__ import annotations

import onnx_ir as ir

from nextscale.export.autoencoder_parts import AutoencoderParts, to_picture
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.models.infinity.bsq_vae import BSQVAE


def build_decoder_graph(vae: BSQVAE) -> ir.Model:
    """The float32 graph of the decoder, ending in the uint8 picture."""
    builder = new_builder("decoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    f_hat = builder.input("f_hat", ir.DataType.FLOAT, ["B", vae.config.latent_channels, "h", "w"])
    pictures = to_picture(builder.op, parts.decoder("decoder", vae.decoder, f_hat))
    add_output(builder, pictures, "images", ir.DataType.UINT8, ["B", "H", "W", 3])
    return finish(builder)
