"""The first steps of a plan: choose the images of calibration, and observe what the model reads while it makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data.observe_ranges import (
    StageObservation,
    observe_decoder_ranges,
    observe_stage_ranges,
)
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.observe_inputs import Observer, observe_inputs
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_decoder import DecoderRanges, decoder_observers
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import DEFAULT_CFG_SCALE


@dataclass(frozen=True)
class CalibrationImages:
    """The images that are observed.

    Attributes:
        class_labels: int64 [N].
        token_maps: int64 [N, L], -1 where the model samples while it is observed.
        report: what a manifest says of them.
    """

    class_labels: NDArray[np.int64]
    token_maps: NDArray[np.int64]
    report: Mapping[str, Any]


def choose_images(model: FloatModel, options: BuildOptions, progress: Progress) -> CalibrationImages:
    """The token maps that are given, or those that the recipe's matching samples first, or places to sample."""
    calibration, token_maps = options.recipe.calibration, options.token_maps
    report: dict[str, Any] = {"images": calibration.images, "seed": options.seed, "cfg_scale": DEFAULT_CFG_SCALE}
    if token_maps is None and calibration.matching != "none":
        settings = SamplingSettings(
            calibration.images, options.seed, batch_size=options.batch_size, matching=calibration.matching
        )
        generator = Generator(model.bundle, options.session)
        token_maps, _ = sample_token_maps(generator, settings, model.work / "sampling", progress)
    if token_maps is not None:
        report |= {"images": len(token_maps), "token_maps": dict(token_maps.settings)}
        return CalibrationImages(token_maps.class_labels, token_maps.token_maps, report)
    info = model.bundle.model
    labels = calibration_labels(info.num_classes, calibration.images, options.seed)
    return CalibrationImages(labels, np.full((len(labels), info.num_tokens), -1, np.int64), report)


def observe(
    model: FloatModel,
    observers: Sequence[Observer],
    images: CalibrationImages,
    options: BuildOptions,
    progress: Progress,
) -> tuple[StageObservation, DecoderRanges]:
    """The ranges that the observers name in the stage graph, and those that the decoder needs."""
    step, count = "calibrating", len(images.class_labels)
    progress(step, 0, count)
    # One after the other: the two sessions together would need half as much memory again.
    found = observe_stage_ranges(
        ObservedStage.open(model.bundle, observe_inputs(model.stage, observers), options.session),
        observers,
        images.class_labels,
        images.token_maps,
        seed=options.seed,
        batch_size=options.batch_size,
        on_images=lambda done: progress(step, done, count),
    )
    if options.recipe.decoder.precision == "float":
        return found, DecoderRanges({}, {})
    return found, _decoder_ranges(model, found.f_hat, options)


def _decoder_ranges(model: FloatModel, f_hat: NDArray[np.float32], options: BuildOptions) -> DecoderRanges:
    inputs, results = decoder_observers(model.decoder)
    session = open_model(observe_inputs(model.decoder, [*inputs, *results]), model.bundle.folder, options.session)
    found = observe_decoder_ranges(session, [*inputs, *results], f_hat)
    return DecoderRanges(
        {observer.input.node: found.whole[observer.input] for observer in inputs},
        {
            observer.input.node: Range(ends.minimum[0], ends.maximum[0])
            for observer in results
            for ends in (found.by_channel[observer.input],)
        },
    )
