"""VAR's decoder and encoder: what is observed of them, and the encoder's graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.observe_autoencoder import observe_autoencoder
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.export.var.encoder_graph import build_encoder_graph, build_features_graph, with_token_maps
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    stock_and_fused_autoencoder,
)
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._next_scale_loop import Generator

# Pictures of the calibration that the encoder reads: ranges need no more.
ENCODER_IMAGES = 64


def observe_decoder(
    model: FloatModel, f_hat: NDArray[np.float32], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of latents, float32 [N, Cvae, h, w]."""
    progress("calibrating the decoder")
    return observe_autoencoder(model.decoder, list(f_hat), model.bundle.folder, options.session, progress)


def observe_encoder(
    model: FloatModel, f_hat: NDArray[np.float32], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of the pictures that the float decoder makes of the first latents."""
    progress("calibrating the encoder")
    generator = Generator(model.bundle, options.session)
    pictures = [generator.decode(one[None])[0] for one in f_hat[:ENCODER_IMAGES]]
    graph = build_features_graph(model.source.vqvae)
    return observe_autoencoder(graph, pictures, model.bundle.folder, options.session, progress)


def encoder_graphs(vqvae: VQVAE, observed: AutoencoderObservation | None) -> tuple[ir.Model, ir.Model]:
    """The stock and the fused graph of an encoder, images to token maps; in float32 both are one.

    Args:
        vqvae: its quantizer stays in float32.
        observed: None for an encoder in float32.
    """
    if observed is None:
        model = build_encoder_graph(vqvae)
        return model, model
    stock, fused = stock_and_fused_autoencoder(build_features_graph(vqvae), observed)
    return with_token_maps(stock, vqvae.quantize), with_token_maps(fused, vqvae.quantize)
