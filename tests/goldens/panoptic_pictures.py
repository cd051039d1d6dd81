"""Segmentations of random boxes, for the parity of PQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.paper.segmentation import Segments

PARITY = Path(__file__).with_name("panoptic_quality.json")


def random_segments(rng: np.random.Generator, classes: int) -> Segments:
    """Boxes, one over the other, so that each has a number of its own and some pixels have none."""
    ids, found = np.zeros((24, 32), np.int64), list[int]()
    for _ in range(rng.integers(1, 8)):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in ids.shape)
        found.append(int(rng.integers(classes)))
        ids[top:bottom, left:right] = len(found)
    kept = [number for number in range(1, len(found) + 1) if (ids == number).any()]
    return Segments(
        np.searchsorted([0, *kept], ids) * np.isin(ids, kept), np.array([found[n - 1] for n in kept], np.int64)
    )


def disturbed(given: Segments, rng: np.random.Generator) -> Segments:
    """Moved by a pixel or two, some of another class, and one of class 0 wherever there is none.

    Where nothing is found torchmetrics leaves out what was expected, which PQ's definition does not.
    """
    ids: NDArray[np.int64] = np.roll(given.ids, rng.integers(0, 3, 2), (0, 1))
    classes = np.where(rng.random(len(given.classes)) < 0.2, 0, given.classes)
    return Segments(np.where(ids == 0, len(classes) + 1, ids), np.append(classes, 0))
