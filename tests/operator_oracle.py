"""What the operators for layers compute, in NumPy; sums of products are exact, all else is float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEAST_SCALE = 2.0**-100


def layer_norm(x: Array, gain: Array, shift: Array, epsilon: float) -> Array:
    """LayerNorm(x) gain + shift of [R, l, K], [R, 1, K] and [R, 1, K]."""
    x = x.astype(np.float64)
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    normalized: Array = (x - mean) / np.sqrt(variance + epsilon) * gain + shift
    return normalized


def image_ranges(x: Array, image_rows: int, bits: int) -> tuple[Array, Array]:
    """Scales and zero points [R]: min-max of each image with zero in it (Eq. 1 to 3)."""
    images = x.reshape(image_rows, len(x) // image_rows, x[:1].size if len(x) else 0)
    high = np.maximum(images.max((0, 2), initial=0.0), 0.0)
    low = np.minimum(images.min((0, 2), initial=0.0), 0.0)
    scale = np.maximum((high - low) / (2**bits - 1), LEAST_SCALE)
    zero_point = np.minimum(np.rint(-low / scale), 2**bits - 1)
    return np.tile(scale, image_rows), np.tile(zero_point, image_rows)


def token_ranges(x: Array, zero_point: int, bits: int) -> Array:
    """Scales [R, l] around a fixed zero point."""
    high = np.maximum(x.max(-1, initial=0.0), 0.0)
    low = np.minimum(x.min(-1, initial=0.0), 0.0)
    return np.maximum(np.maximum(high / (2**bits - 1 - zero_point), -low / zero_point), LEAST_SCALE)


def unrounded_codes(x: Array, scale: Array | float, zero_point: Array | float, bits: int) -> Array:
    """Codes before they are rounded, which tell how near to a tie they are."""
    return np.clip(x.astype(np.float64) / scale + zero_point, 0, 2**bits - 1)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def product(
    codes: Array, scale: Array | float, zero_point: Array | float, weight: Array, weight_scale: Array | float
) -> Array:
    """scale (codes - zero_point) weight weight_scale of [..., K] and [K, N]."""
    centred = codes.astype(np.int64) - np.asarray(zero_point).astype(np.int64)
    return (centred @ weight.astype(np.int64)) * np.asarray(scale, np.float64) * np.asarray(weight_scale, np.float64)
