"""The first steps of a plan: choose the images of calibration, and observe what the model reads while it makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextscale.calib_data.observe_ranges import StageObservation, observe_stage_ranges
from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler.options import BuildOptions, Progress
from nextscale.graph_passes.observe_inputs import Observer, observe_inputs
from nextscale.runtime._next_scale_loop import Generator


@dataclass(frozen=True)
class CalibrationImages:
    """The images that are observed.

    Attributes:
        subjects: what the N images are of.
        token_maps: int64 [L] of each, -1 where the model samples while it is observed.
        report: what a manifest says of them.
    """

    subjects: Subjects
    token_maps: TokenRows
    report: Mapping[str, Any]


def choose_images(model: FloatModel, options: BuildOptions, progress: Progress) -> CalibrationImages:
    """The token maps that are given, or those that the recipe's matching samples first, or places to sample."""
    calibration, token_maps = options.recipe.calibration, options.token_maps
    report: dict[str, Any] = {
        "images": calibration.images,
        "seed": options.seed,
        "cfg_scale": model.bundle.manifest.default_cfg_scale,
    }
    if token_maps is None and calibration.matching != "none":
        token_maps = model.family.sample(Generator(model.bundle, options.session), options, model.work, progress)
    if token_maps is not None:
        report |= {"images": len(token_maps), "token_maps": dict(token_maps.settings)}
        return CalibrationImages(token_maps.subjects, token_maps.token_maps, report)
    subjects = model.family.calibration_subjects(calibration.images, options.seed)
    return CalibrationImages(subjects, subjects.sampled(model.bundle.manifest), report)


def observe(
    model: FloatModel,
    observers: Sequence[Observer],
    images: CalibrationImages,
    options: BuildOptions,
    progress: Progress,
) -> StageObservation:
    """The ranges that the observers name in the stage graph."""
    step, count = "calibrating", len(images.subjects)
    progress(step, 0, count)
    return observe_stage_ranges(
        ObservedStage.open(model.bundle, model.family.as_run(observe_inputs(model.stage, observers)), options.session),
        observers,
        images.subjects,
        images.token_maps,
        seed=options.seed,
        batch_size=options.batch_size,
        on_images=lambda done: progress(step, done, count),
    )
