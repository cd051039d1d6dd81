"""The classes of calibration images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def calibration_labels(num_classes: int, images: int, seed: int) -> NDArray[np.int64]:
    """Labels spread evenly over the classes, which they go round in an order drawn from the seed: int64 [images]."""
    order = np.random.default_rng(seed).permutation(num_classes)
    return np.resize(order, images).astype(np.int64)
