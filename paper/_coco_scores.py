"""mIoU, AP and PQ of a model on a user's COCO folder, each asked for its own task, as Table D has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nextscale.paper._coco import AveragePrecision, Coco
from nextscale.paper._segmentation_agreement import Thresholds
from nextscale.paper._segmentation_scores import ClassOverlaps, PanopticQuality
from nextscale.paper.segmentation import instances, panoptic_segments, semantic_map
from nextscale.paper.segmenter import Segmenter
from nextscale.runtime._errors import NextscaleError


@dataclass(frozen=True)
class CocoScores:
    """All in percent.

    Attributes:
        pictures: their number.
        miou, ap, pq: of semantic, instance and panoptic segmentation; None where nothing is annotated.
    """

    pictures: int
    miou: float | None
    ap: float
    pq: float | None


def require_classes(coco: Coco, segmenter: Segmenter) -> None:
    """Raise NextscaleError unless a model has as many classes as the folder."""
    if len(segmenter.info.classes) != len(coco.names):
        raise NextscaleError(
            f"the model has {len(segmenter.info.classes)} classes; expected COCO's {len(coco.names)} categories"
        )


def coco_scores(
    coco: Coco, segmenter: Segmenter, thresholds: Thresholds, on_pictures: Callable[[int], object]
) -> CocoScores:
    """Segment the pictures three times, and compare with the annotations.

    Args:
        coco: the folder.
        segmenter: of COCO's classes in their order.
        thresholds: of panoptic segments.
        on_pictures: called with how many are finished.
    """
    classes = len(coco.names)
    overlaps, quality, precision = ClassOverlaps(classes), PanopticQuality(classes), AveragePrecision([*coco.things])
    for place in range(len(coco)):
        picture = coco[place]
        overlaps.add(picture.classes, semantic_map(segmenter.queries(picture.pixels, "semantic")))
        precision.add(picture, instances(segmenter.queries(picture.pixels, "instance"), coco.things))
        queries = segmenter.queries(picture.pixels, "panoptic")
        segments = panoptic_segments(queries, coco.things, thresholds.score, thresholds.overlap)
        quality.add(picture.segments, segments, picture.crowds)
        on_pictures(place + 1)
    return CocoScores(len(coco), _percent(overlaps.miou), 100 * precision.ap(), _percent(quality.pq))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
