"""The first steps of a plan: choose the images of calibration, and observe what the model reads while it makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data.observe_ranges import StageObservation, observe_stage_ranges
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.observe_inputs import Observer, observe_inputs
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
) -> StageObservation:
    """The ranges that the observers name in the stage graph."""
    step, count = "calibrating", len(images.class_labels)
    progress(step, 0, count)
    return observe_stage_ranges(
        ObservedStage.open(model.bundle, observe_inputs(model.stage, observers), options.session),
        observers,
        images.class_labels,
        images.token_maps,
        seed=options.seed,
        batch_size=options.batch_size,
        on_images=lambda done: progress(step, done, count),
    )
