"""Two segmentations of the same pictures, added up: mIoU (Everingham et al., 2015) and PQ (Kirillov et al., 2019)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from nextscale.paper.segmentation import Segments

# A pixel that nobody says anything of.
VOID = -1
# The least intersection over union of segments that match, which makes the match the only one.
LEAST_IOU = 0.5


class ClassOverlaps:
    """Intersections and unions of classes over all pixels of all pictures.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self._counts = np.zeros((classes, classes), np.int64)

    def add(self, expected: NDArray[np.int64], found: NDArray[np.int64]) -> None:
        """Count a picture.

        Args:
            expected: int64 [H, W], classes, or VOID where pixels do not count.
            found: int64 [H, W], classes.
        """
        classes, known = len(self._counts), expected != VOID
        pairs = expected[known] * classes + found[known]
        self._counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def miou(self) -> float | None:
        """The mean intersection over union of the classes that were expected somewhere; None: there are none."""
        expected, both = self._counts.sum(axis=1), np.diagonal(self._counts)
        there = expected > 0
        unions = (expected + self._counts.sum(axis=0) - both)[there]
        return float((both[there] / unions).mean()) if there.any() else None


class PanopticQuality:
    """Segments of one class match where they share more than half of their union; by class the sum of these shares over
    the matches and half of what has none, and the mean over classes.

    Args:
        classes: K.
        unlabelled: whether pixels of no expected segment are ones that nobody has annotated: what is found there does
            not count.
    """

    def __init__(self, classes: int, *, unlabelled: bool = True) -> None:
        self._unlabelled = unlabelled
        self._shares = np.zeros(classes)
        self._matched, self._alone = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    def add(self, expected: Segments, found: Segments, crowds: Collection[int] = ()) -> None:
        """Count a picture.

        Args:
            expected: segments.
            found: in the same picture.
            crowds: numbers of expected segments that are crowds, which need not be found; nor counts what is found
                within those of its class.
        """
        counts = _in_common(expected.ids, found.ids, len(expected.classes), len(found.classes))
        of_expected, of_found = counts.sum(axis=1), counts.sum(axis=0)
        nowhere = counts[0] if self._unlabelled else np.zeros_like(counts[0])
        matched = set[int]()
        for i, label in enumerate(expected.classes, 1):
            if i in crowds:
                continue
            shares = counts[i, 1:] / np.maximum(of_expected[i] + (of_found - nowhere - counts[i])[1:], 1)
            matches = np.flatnonzero((shares > LEAST_IOU) & (found.classes == label))
            if len(matches):
                self._shares[label] += shares[matches[0]]
                self._matched[label] += 1
                matched.add(int(matches[0]) + 1)
            else:
                self._alone[label] += 1
        for j, label in enumerate(found.classes, 1):
            crowd = [i for i in crowds if expected.classes[i - 1] == label]
            uncounted = nowhere[j] + counts[crowd, j].sum()
            if j not in matched and uncounted <= of_found[j] / 2:
                self._alone[label] += 1

    @property
    def pq(self) -> float | None:
        """The mean over classes that were expected or found somewhere; None: there are none."""
        whole = self._matched + self._alone / 2
        there = whole > 0
        return float((self._shares[there] / whole[there]).mean()) if there.any() else None


def _in_common(
    expected: NDArray[np.int64], found: NDArray[np.int64], of_expected: int, of_found: int
) -> NDArray[np.int64]:
    """Pixels of each pair of segments, [of_expected + 1, of_found + 1]; the first of each is no segment's."""
    shape = of_expected + 1, of_found + 1
    return np.bincount((expected * shape[1] + found).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
