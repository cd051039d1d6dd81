"""What calibration observes: the ranges of every integer layer's input while the model makes or reads token maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.graph_passes.observe_ranges import PARTS, channels_name, observed_name, pairs_name
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_decoder import DecoderRanges
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.request import DEFAULT_CFG_SCALE, DEFAULT_TOP_K, DEFAULT_TOP_P
from nextscale.runtime.session import SessionOptions, open_session


@dataclass(frozen=True)
class CalibrationSettings:
    """How calibration images are sampled; labels go round the classes, in an order drawn from the seed."""

    images: int = 64
    seed: int = 0
    cfg_scale: float = DEFAULT_CFG_SCALE
    top_k: int = DEFAULT_TOP_K
    top_p: float = DEFAULT_TOP_P
    batch_size: int = 2


@dataclass(frozen=True)
class Calibration:
    """Observed on images.

    Attributes:
        class_labels: int64 [N].
        token_maps: int64 [N, L].
        stage_ranges: for each layer of the stage graph, ranges of its input, [S].
        channel_ranges: for the layers observed by channel, ranges of each channel of its input, [S, C].
        pair_ranges: for the layers observed by pairs, the same of each of `observe_ranges.PARTS`.
        decoder_ranges: what `quantize_decoder` needs.
    """

    class_labels: NDArray[np.int64]
    token_maps: NDArray[np.int64]
    stage_ranges: Mapping[str, Range]
    channel_ranges: Mapping[str, Range]
    pair_ranges: Mapping[str, Mapping[str, Range]]
    decoder_ranges: DecoderRanges


def calibration_labels(num_classes: int, settings: CalibrationSettings) -> NDArray[np.int64]:
    """N labels spread evenly over the classes: int64 [N]."""
    order = np.random.default_rng(settings.seed).permutation(num_classes)
    return np.resize(order, settings.images).astype(np.int64)


def calibrate(
    observed: Bundle,
    stage_layers: Sequence[str],
    channel_layers: Sequence[str],
    pair_layers: Sequence[str],
    decoder_layers: tuple[Sequence[str], Sequence[str]],
    settings: CalibrationSettings,
    options: SessionOptions,
    on_images: Callable[[int], object],
    token_maps: TokenMaps | None = None,
) -> Calibration:
    """Sample images with the full-precision model, or feed it token maps, and observe the ranges on the way.

    Args:
        observed: a float32 bundle whose graphs carry observers (`observe_ranges`, `observe_channels`).
        stage_layers, channel_layers, pair_layers: the stage graph's observed nodes' names.
        decoder_layers: the decoder's integer convolutions, and the readers of their results (`observe_decoder`).
        settings: what to sample.
        options: threads and memory.
        on_images: called with the number of images finished, after each batch.
        token_maps: teacher-force these instead of sampling.
    """
    if token_maps is None:
        labels = calibration_labels(observed.model.num_classes, settings)
        forced = np.full((len(labels), observed.model.num_tokens), -1, np.int64)
    else:
        labels, forced = token_maps.class_labels, token_maps.token_maps
    names = [observed_name(layer) for layer in stage_layers] + [channels_name(layer) for layer in channel_layers]
    names += [pairs_name(layer, part) for layer in pair_layers for part in PARTS]
    # One after the other: the two sessions together would need half as much memory again.
    tokens, f_hat, found = _observe_stages(observed, names, labels, forced, settings, options, on_images)
    decoder_ranges = _observe_decoder(observed, decoder_layers, f_hat, options)
    return Calibration(
        labels,
        tokens,
        {layer: found[observed_name(layer)] for layer in stage_layers},
        {layer: found[channels_name(layer)] for layer in channel_layers},
        {layer: {part: found[pairs_name(layer, part)] for part in PARTS} for layer in pair_layers},
        decoder_ranges,
    )


def _observe_stages(
    observed: Bundle,
    names: Sequence[str],
    labels: NDArray[np.int64],
    forced: NDArray[np.int64],
    settings: CalibrationSettings,
    options: SessionOptions,
    on_images: Callable[[int], object],
) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, Range]]:
    """Token maps int64 [N, L], f_hat after the last stage float32 [N, Cvae, h, w], and ranges [S] by output."""
    generator = Generator(observed, options)
    token_maps, f_hat, ranges = [], [], dict[str, Range]()
    for first in range(0, len(labels), settings.batch_size):
        stages = list(
            generator.stream(
                labels[first : first + settings.batch_size],
                seed=settings.seed,
                first_image=first,
                cfg_scale=settings.cfg_scale,
                top_k=min(settings.top_k, observed.model.vocab_size),
                top_p=settings.top_p,
                forced_tokens=forced[first : first + settings.batch_size],
                outputs=[*names, "present.f_hat"],
            )
        )
        token_maps.append(np.concatenate([stage.tokens for stage in stages], axis=1))
        f_hat.append(stages[-1].outputs["present.f_hat"])
        _widen(ranges, {name: [stage.outputs[name] for stage in stages] for name in names})
        on_images(min(first + settings.batch_size, len(labels)))
    return np.concatenate(token_maps), np.concatenate(f_hat), ranges


def _observe_decoder(
    observed: Bundle,
    layers: tuple[Sequence[str], Sequence[str]],
    f_hat: NDArray[np.float32],
    options: SessionOptions,
) -> DecoderRanges:
    """Ranges over the decoding of float32 [N, Cvae, h, w], one image at a time."""
    session = open_session(observed.graph_path("decoder"), observed.manifest.graphs["decoder"], options)
    inputs, results = layers
    names = [observed_name(layer) for layer in inputs] + [channels_name(layer) for layer in results]
    ranges: dict[str, Range] = {}
    for one in f_hat:
        extremes = session.run(names, {"f_hat": one[None]})
        _widen(ranges, {name: [ends] for name, ends in zip(names, extremes, strict=True)})
    channels = {layer: ranges[channels_name(layer)] for layer in results}
    return DecoderRanges(
        {layer: ranges[observed_name(layer)] for layer in inputs},
        {layer: Range(found.minimum[0], found.maximum[0]) for layer, found in channels.items()},
    )


def _widen(ranges: dict[str, Range], extremes: Mapping[str, Sequence[NDArray[np.float32]]]) -> None:
    """Widen the ranges by one batch's min and max, [2] or [2, C], of each name and stage."""
    for name, stages in extremes.items():
        minimum, maximum = np.stack(stages, axis=1)
        seen = minimum <= maximum  # a stage may have no values of a kind
        found = Range(np.where(seen, minimum, 0), np.where(seen, maximum, 0))
        ranges[name] = ranges[name].merge(found) if name in ranges else found
