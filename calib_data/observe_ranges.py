"""The ranges of the inputs of layers while the model samples token maps, or is fed some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.calib_data.observed_stage import ObservedStage, OnImages, nobody
from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.graph_passes.observe_inputs import Input, Observer
from nextscale.graph_passes.qparams import Range


@dataclass(frozen=True)
class ObservedRanges:
    """The smallest and largest value of each observed input.

    Attributes:
        whole: over all its channels, [S]; [1] for a graph that runs once.
        by_channel: for each of its channels, [S, C]; [1, C].
    """

    whole: Mapping[Input, Range] = field(default_factory=dict)
    by_channel: Mapping[Input, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class StageObservation:
    """What `observe_stage_ranges` found.

    Attributes:
        subjects: what the N images are of.
        token_maps: int64 [L] of each, those that were taken.
        f_hat: the latents after the last stage, float32 [Cvae, h, w] each.
        ranges: of the stage graph's inputs.
    """

    subjects: Subjects
    token_maps: TokenRows
    f_hat: Sequence[NDArray[np.float32]]
    ranges: ObservedRanges


def observe_stage_ranges(
    stage: ObservedStage,
    observers: Sequence[Observer],
    subjects: Subjects,
    token_maps: TokenRows,
    *,
    seed: int = 0,
    batch_size: int = 2,
    on_images: OnImages = nobody,
) -> StageObservation:
    """Sample images with the full-precision model, or feed it token maps, and observe ranges on the way.

    Args:
        stage: its graph gives what the observers name (`observe_inputs`).
        observers: of "range" and "channels".
        subjects: what the N images are of.
        token_maps: int64 [L] of each; -1 is sampled, with the bundle's defaults of guidance and filters.
        seed: of what is sampled.
        batch_size: images at a time.
        on_images: called with the number of images finished, after each batch.
    """
    names = {observer.output for observer in observers}
    tokens = deepcopy(token_maps)
    f_hat: list[NDArray[np.float32]] = []
    models = stage.bundle.manifest.models
    extremes = _Extremes(max(model.num_stages for model in models))
    for images, found in stage.run(
        subjects,
        token_maps,
        outputs=sorted(names),
        batch_size=batch_size,
        on_images=on_images,
        seed=seed,
    ):
        slices = models[int(subjects.sizes[images.start])].stage_slices
        for row, taken in zip(tokens[images], found.tokens, strict=True):
            row[slices[found.stage]] = taken
        for name in names:
            extremes.widen(name, found.stage, found.outputs[name])
        if found.stage == len(slices) - 1:
            f_hat.extend(found.f_hat.numpy())
    return StageObservation(subjects, tokens, f_hat, extremes.ranges(observers))


def observe_autoencoder_ranges(
    session: onnxruntime.InferenceSession, observers: Sequence[Observer], inputs: Iterable[NDArray[Any]]
) -> ObservedRanges:
    """The ranges of the values of a decoder's or encoder's graph, one image at a time.

    Args:
        session: of a graph with one input that gives what the observers name.
        observers: of "range" and "channels".
        inputs: latents, float32 [Cvae, h, w] each, or pictures, uint8 [H, W, 3].
    """
    names = [observer.output for observer in observers]
    (source,) = session.get_inputs()
    extremes = _Extremes(num_stages=1)
    for one in inputs:
        for name, ends in zip(names, session.run(names, {source.name: one[None]}), strict=True):
            extremes.widen(name, 0, ends)
    return extremes.ranges(observers)


class _Extremes:
    """The smallest and largest value so far, by output: [S] or [S, C] each; zero at a stage that had no values.

    Stages behind the last that any image had are taken for like that one.
    """

    def __init__(self, num_stages: int) -> None:
        self._num_stages, self._last = num_stages, 0
        self._ends: dict[str, NDArray[np.float32]] = {}

    def widen(self, name: str, stage: int, ends: NDArray[np.float32]) -> None:
        """Take in one batch's min and max, [2] or [2, C]."""
        self._last = max(self._last, stage)
        if name not in self._ends:
            self._ends[name] = np.full((2, self._num_stages, *ends.shape[1:]), np.inf, np.float32)
            self._ends[name][1] = -np.inf
        minimum, maximum = self._ends[name]
        minimum[stage], maximum[stage] = np.minimum(minimum[stage], ends[0]), np.maximum(maximum[stage], ends[1])

    def ranges(self, observers: Iterable[Observer]) -> ObservedRanges:
        whole, by_channel = dict[Input, Range](), dict[Input, Range]()
        like = np.minimum(np.arange(self._num_stages), self._last)
        for observer in observers:
            minimum, maximum = self._ends[observer.output][:, like]
            seen = minimum <= maximum
            found = Range(np.where(seen, minimum, 0), np.where(seen, maximum, 0))
            (whole if observer.gives == "range" else by_channel)[observer.input] = found
        return ObservedRanges(whole, by_channel)
