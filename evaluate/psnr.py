"""Peak signal-to-noise ratio, how near pictures are to others pixel by pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PEAK = 255


def psnr(expected: NDArray[np.uint8], found: NDArray[np.uint8]) -> float:
    """10 log10(255² / mean squared error) over all pixels of all pictures, dB; infinite where none differs.

    Args:
        expected, found: pictures of the same shape, uint8 [..., H, W, 3].
    Raises:
        ValueError: the shapes differ.
    """
    if expected.shape != found.shape:
        raise ValueError(f"pictures {found.shape}: expected {expected.shape}")
    error = float(np.square(expected.astype(np.float64) - found).mean())
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")
