"""What has to be known of a float decoder's and encoder's values before they become integer."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observe_moments import moment_groups, observe_moments
from nextscale.calib_data.observe_ranges import observe_autoencoder_ranges
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.export.var.encoder_graph import build_encoder_graph, build_features_graph, with_token_maps
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.observe_inputs import observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    autoencoder_observers,
    stock_and_fused_autoencoder,
    two_byte_convolutions,
)
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._next_scale_loop import Generator

# Pictures of the calibration that the encoder reads: ranges and second moments need no more.
ENCODER_IMAGES = 64
MOMENTS_IMAGES = 32


def observe_decoder(
    model: FloatModel, f_hat: NDArray[np.float32], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of latents, float32 [N, Cvae, h, w]."""
    progress("calibrating the decoder")
    return _observe(model, model.decoder, f_hat, options, progress)


def observe_encoder(
    model: FloatModel, f_hat: NDArray[np.float32], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    """Of the pictures that the float decoder makes of the first latents."""
    progress("calibrating the encoder")
    generator = Generator(model.bundle, options.session)
    pictures = np.concatenate([generator.decode(one[None]) for one in f_hat[:ENCODER_IMAGES]])
    return _observe(model, build_features_graph(model.source.vqvae), pictures, options, progress)


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


def _observe(
    model: FloatModel, graph: ir.Model, inputs: NDArray[Any], options: BuildOptions, progress: Progress
) -> AutoencoderObservation:
    of_inputs, of_results = autoencoder_observers(graph)
    observers = [*of_inputs, *of_results]
    session = open_model(observe_inputs(graph, observers), model.bundle.folder, options.session)
    found = observe_autoencoder_ranges(session, observers, inputs)
    by_channel = {place: Range(ends.minimum[0], ends.maximum[0]) for place, ends in found.by_channel.items()}
    ranges = {**found.whole, **by_channel}
    return AutoencoderObservation(
        {observer.input.node: ranges[observer.input] for observer in of_inputs},
        {observer.input.node: ranges[observer.input] for observer in of_results},
        _moments(model, graph, inputs[:MOMENTS_IMAGES], options, progress),
    )


def _moments(
    model: FloatModel, graph: ir.Model, inputs: NDArray[Any], options: BuildOptions, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Of the layers that read two bytes: where these are exact, what is left is the error of the weights."""
    (source,) = graph.graph.inputs
    names = two_byte_convolutions(graph)
    groups = moment_groups(graph, names) if names else []
    moments: dict[str, NDArray[np.float32]] = {}
    for place, group in enumerate(groups):
        told = partial(_tell, progress, place * len(inputs), len(groups) * len(inputs))
        feeds = ({str(source.name): one[None]} for one in inputs)
        moments |= observe_moments(
            graph, group, feeds, weights=model.bundle.folder, options=options.session, on_images=told
        )
    return moments


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress("observing what convolutions see", before + done, total)
