"""The decoder's operators in NumPy: integer convolutions, GroupNorm with SiLU and codes, sums of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Kernel:
    """weight s8 [out, C, k, k], scale f32 [out], bias int32 [out]."""

    weight: Array
    scale: Array
    bias: Array


def convolution(x: Array, zero_point: int, kernels: Sequence[Kernel]) -> Array:
    """u8 [B, H, W, C] -> u8 [B, H, W, out], or [B, 2H, 2W, out] by four kernels of 2x2."""
    batch, height, width, _ = x.shape
    border = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (1, 1), (1, 1), (0, 0)))
    zoom = 2 if len(kernels) == 4 else 1
    y = np.empty((batch, zoom * height, zoom * width, len(kernels[0].bias)), np.uint8)
    for number, kernel in enumerate(kernels):
        down, right = divmod(number, 2)
        total = kernel.bias.astype(np.int64)
        for i, j in np.ndindex(kernel.weight.shape[2:]):
            pixels = border[:, i + down : i + down + height, j + right : j + right + width]
            total = total + pixels @ kernel.weight[:, :, i, j].astype(np.int64).T
        numbers = total.astype(np.int32).astype(np.float32) * kernel.scale
        y[:, down::zoom, right::zoom] = np.clip(np.rint(numbers), 0, 255)
    return y


def group_norm(x: Array, weight: Array, bias: Array, groups: int, epsilon: float, silu: bool) -> Array:
    """Float64 [B, n, C] of numbers [B, n, C]."""
    batch, pixels, channels = x.shape
    parts = x.astype(np.float64).reshape(batch, pixels, groups, channels // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    normalized = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + epsilon)
    y: Array = normalized.reshape(x.shape) * weight + bias
    return y / (1 + np.exp(-y)) if silu else y
