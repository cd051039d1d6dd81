"""How alike the segmentations of a model and of full precision are, on photographs that nobody has annotated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.measure.statistics import Interval, mean_interval
from nextscale.paper._segmentation_scores import ClassOverlaps, PanopticQuality
from nextscale.paper.segmentation import OVERLAP, SCORE, Segments, panoptic_segments, semantic_map
from nextscale.paper.segmenter import Segmenter

Pixels = NDArray[np.uint8]
OnPictures = Callable[[int], object]


@dataclass(frozen=True)
class Thresholds:
    """What a segment needs: the probability of its class, and the share of its mask that is its own."""

    score: float = SCORE
    overlap: float = OVERLAP


@dataclass(frozen=True)
class Seen:
    """What a model sees in a photograph.

    Attributes:
        classes: int64 [H, W], asked for "semantic".
        segments: asked for "panoptic".
    """

    classes: NDArray[np.int64]
    segments: Segments


@dataclass(frozen=True)
class Agreement:
    """Of a model with full precision, neither of which is the truth.

    Attributes:
        photographs: their number.
        pixels: share of a photograph's pixels that are of the same class.
        miou: mean intersection over union of the classes of full precision's maps, over all pixels.
        pq: panoptic quality, full precision's segments being what is expected; None where neither has any.
        segments: full precision's, in all.
    """

    photographs: int
    pixels: Interval
    miou: float
    pq: float | None
    segments: int


def see(
    segmenter: Segmenter, photographs: Sequence[Pixels], thresholds: Thresholds, on_pictures: OnPictures
) -> list[Seen]:
    """What a model sees in photographs, at the size that it sees them in.

    Args:
        segmenter: the model.
        photographs: uint8 [H, W, 3].
        thresholds: of segments.
        on_pictures: called with how many were looked at.
    """
    found = list[Seen]()
    for photograph in photographs:
        small = segmenter.fitted(photograph)
        classes = semantic_map(segmenter.queries(small, "semantic"))
        queries = segmenter.queries(small, "panoptic")
        segments = panoptic_segments(queries, segmenter.info.things, thresholds.score, thresholds.overlap)
        found.append(Seen(classes, segments))
        on_pictures(len(found))
    return found


def agreement(expected: Sequence[Seen], found: Sequence[Seen], classes: int) -> Agreement:
    """Of what two models see in the same photographs, the first of which is full precision; of K classes."""
    overlaps, quality, same = ClassOverlaps(classes), PanopticQuality(classes, unlabelled=False), list[float]()
    for exact, other in zip(expected, found, strict=True):
        overlaps.add(exact.classes, other.classes)
        quality.add(exact.segments, other.segments)
        same.append(float((exact.classes == other.classes).mean()))
    miou = overlaps.miou
    assert miou is not None
    segments = sum(len(seen.segments.classes) for seen in expected)
    return Agreement(len(same), mean_interval(same), miou, quality.pq, segments)
