"""Codes of keys and values in NumPy, as docs/quantization.md defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def coded(x: NDArray[np.float32], axis: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of x with z = 128 and a scale for each of what lies along the axis, which has length 1 in the scales:
    s = max(max(x) / 127, -min(x) / 128), at least 2^-100, and clip(round(x / s) + 128, 0, 255), all in float32."""
    high, low = x.max(axis, keepdims=True), x.min(axis, keepdims=True)
    scale = np.maximum(np.maximum(high / np.float32(127), -low / np.float32(128)), np.float32(2.0**-100))
    codes = np.clip(np.round(x / scale) + np.float32(128), 0, 255)
    return codes.astype(np.uint8), scale


def dequantized(codes: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[Any]:
    """s (code - 128), in float32."""
    found: NDArray[np.float32] = (codes.astype(np.float32) - np.float32(128)) * scale
    return found
