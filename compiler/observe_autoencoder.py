"""What has to be known of a float decoder's or encoder's values before they become integer, observed in its graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observe_moments import moment_groups, observe_moments
from nextscale.calib_data.observe_ranges import observe_autoencoder_ranges
from nextscale.compiler.options import Progress
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.observe_inputs import observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    autoencoder_observers,
    two_byte_convolutions,
)
from nextscale.runtime._session import SessionOptions

# Of what an encoder reads: second moments need no more.
MOMENTS_IMAGES = 32


def observe_autoencoder(
    graph: ir.Model,
    inputs: Sequence[NDArray[Any]],
    weights: Path,
    session: SessionOptions,
    progress: Progress,
    narrow: int = 0,
) -> AutoencoderObservation:
    """What `stock_and_fused_autoencoder` needs, of some latents or pictures.

    Args:
        graph: a float decoder or features graph; not modified.
        inputs: latents float32 [d, h, w] or pictures uint8 [H, W, 3], which may differ in size where the graph lets
            them.
        weights: the folder of the graph's external weights.
        session: threads and memory.
        progress: told how far the second moments are.
        narrow: a decoder's convolutions to at most so many channels read two bytes.
    """
    of_inputs, of_results = autoencoder_observers(graph, narrow)
    observers = [*of_inputs, *of_results]
    observed = open_model(observe_inputs(graph, observers), weights, session)
    found = observe_autoencoder_ranges(observed, observers, inputs)
    by_channel = {place: Range(ends.minimum[0], ends.maximum[0]) for place, ends in found.by_channel.items()}
    ranges = {**found.whole, **by_channel}
    return AutoencoderObservation(
        {observer.input.node: ranges[observer.input] for observer in of_inputs},
        {observer.input.node: ranges[observer.input] for observer in of_results},
        _moments(graph, two_byte_convolutions(graph, narrow), inputs[:MOMENTS_IMAGES], weights, session, progress),
        narrow,
    )


def _moments(
    graph: ir.Model,
    names: list[str],
    inputs: Sequence[NDArray[Any]],
    weights: Path,
    session: SessionOptions,
    progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    """Of the layers that read two bytes: where these are exact, what is left is the error of the weights."""
    (source,) = graph.graph.inputs
    groups = moment_groups(graph, names) if names else []
    moments: dict[str, NDArray[np.float32]] = {}
    for place, group in enumerate(groups):
        told = partial(_tell, progress, place * len(inputs), len(groups) * len(inputs))
        feeds = ({str(source.name): one[None]} for one in inputs)
        moments |= observe_moments(graph, group, feeds, weights=weights, options=session, on_images=told)
    return moments


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress("observing what convolutions see", before + done, total)
