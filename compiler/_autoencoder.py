"""A model's decoder and encoder: what is observed of them, and the encoder's graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.family import Family
from nextscale.compiler.observe_autoencoder import observe_autoencoder
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    stock_and_fused_autoencoder,
)
from nextscale.runtime._next_scale_loop import Generator

# Pictures of the calibration that the encoder reads: ranges need no more.
ENCODER_IMAGES = 64


def observe_decoder(
    model: FloatModel, f_hat: Sequence[NDArray[np.float32]], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of latents, float32 [Cvae, h, w] each."""
    progress("calibrating the decoder")
    narrow = options.recipe.decoder.two_bytes
    return observe_autoencoder(model.decoder, f_hat, model.bundle.folder, options.session, progress, narrow)


def observe_encoder(
    model: FloatModel, f_hat: Sequence[NDArray[np.float32]], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of the pictures that the float decoder makes of the first latents."""
    progress("calibrating the encoder")
    generator = Generator(model.bundle, options.session)
    pictures = [generator.decode(one[None])[0] for one in f_hat[:ENCODER_IMAGES]]
    graph = model.family.features_graph()
    return observe_autoencoder(graph, pictures, model.bundle.folder, options.session, progress)


def encoder_graphs(family: Family, observed: AutoencoderObservation | None) -> tuple[ir.Model, ir.Model]:
    """The stock and the fused graph of an encoder, images to token maps; in float32 both are one.

    Args:
        family: whose encoder; what makes token maps of its features stays in float32.
        observed: None for an encoder in float32.
    """
    if observed is None:
        model = family.with_token_maps(family.features_graph())
        return model, model
    stock, fused = stock_and_fused_autoencoder(family.features_graph(), observed)
    return family.with_token_maps(stock), family.with_token_maps(fused)
