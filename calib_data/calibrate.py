"""What calibration learns: token maps of the full-precision model, and the ranges of every integer layer's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.graph_passes.observe_ranges import observed_name
from nextscale.graph_passes.qparams import Range
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import open_session


@dataclass(frozen=True)
class CalibrationSettings:
    """How calibration images are sampled; labels go round the classes, in an order drawn from the seed."""

    images: int = 64
    seed: int = 0
    cfg_scale: float = 4.0
    top_k: int = 900
    top_p: float = 0.96
    batch_size: int = 4


@dataclass(frozen=True)
class Calibration:
    """Observed on sampled images.

    Attributes:
        class_labels: int64 [N].
        token_maps: int64 [N, L].
        stage_ranges: for each layer of the stage graph, ranges of its input, [S].
        decoder_ranges: for each convolution of the decoder, the range of its input, [1].
    """

    class_labels: NDArray[np.int64]
    token_maps: NDArray[np.int64]
    stage_ranges: Mapping[str, Range]
    decoder_ranges: Mapping[str, Range]


def calibration_labels(num_classes: int, settings: CalibrationSettings) -> NDArray[np.int64]:
    """N labels spread evenly over the classes: int64 [N]."""
    order = np.random.default_rng(settings.seed).permutation(num_classes)
    return np.resize(order, settings.images).astype(np.int64)


def calibrate(
    observed: Generator,
    stage_layers: list[str],
    decoder_layers: list[str],
    settings: CalibrationSettings,
    on_images: Callable[[int], object],
) -> Calibration:
    """Sample images with the full-precision model and observe the ranges on the way.

    Args:
        observed: runs a float32 bundle whose graphs carry observers (`observe_ranges`).
        stage_layers, decoder_layers: the observed nodes' names.
        settings: what to sample.
        on_images: called with the number of images finished, after each batch.
    """
    labels = calibration_labels(observed.bundle.model.num_classes, settings)
    decoder = open_session(
        observed.bundle.graph_path("decoder"), observed.bundle.manifest.graphs["decoder"], observed.options
    )
    stage_outputs = [observed_name(name) for name in stage_layers]
    decoder_outputs = [observed_name(name) for name in decoder_layers]
    token_maps: list[NDArray[np.int64]] = []
    stage_extremes, decoder_extremes = [], []
    top_k = min(settings.top_k, observed.bundle.model.vocab_size)
    for first in range(0, len(labels), settings.batch_size):
        batch = labels[first : first + settings.batch_size]
        stages = list(
            observed.stream(
                batch,
                seed=settings.seed,
                first_image=first,
                cfg_scale=settings.cfg_scale,
                top_k=top_k,
                top_p=settings.top_p,
                outputs=[*stage_outputs, "present.f_hat"],
            )
        )
        stage_extremes.append([[stage.outputs[name] for name in stage_outputs] for stage in stages])
        f_hat = stages[-1].outputs["present.f_hat"]
        decoder_extremes.append([decoder.run(decoder_outputs, {"f_hat": f_hat})])
        token_maps.append(np.concatenate([stage.tokens for stage in stages], axis=1))
        on_images(min(first + settings.batch_size, len(labels)))
    return Calibration(
        labels,
        np.concatenate(token_maps),
        _ranges(stage_layers, stage_extremes),
        _ranges(decoder_layers, decoder_extremes),
    )


def _ranges(layers: list[str], extremes: list[list[list[NDArray[np.float32]]]]) -> dict[str, Range]:
    """Merge [batches][stages][layers] of (min, max) into a range a stage for each layer."""
    array = np.array(extremes, dtype=np.float32)
    minimum, maximum = array[..., 0].min(axis=0), array[..., 1].max(axis=0)
    return {name: Range(minimum[:, i], maximum[:, i]) for i, name in enumerate(layers)}
