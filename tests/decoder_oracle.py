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


FINE_STEPS, FINE_ZERO = 128, 64


def kernel_sums(codes: Array, zero: int, weight: Array, corner: tuple[int, int], stride: int) -> Array:
    """Sums of (code - zero) weight in int64; `corner` is where windows begin in a picture with a border of one.

    In float64 on the way, which holds integers up to 2^53 and is multiplied much faster.
    """
    batch, height, width, _ = codes.shape
    border = np.pad(codes.astype(np.float64) - zero, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = np.zeros((batch, height // stride, width // stride, len(weight)))
    for i, j in np.ndindex(weight.shape[2:]):
        y, x = i + corner[0], j + corner[1]
        pixels = border[:, y : y + height : stride, x : x + width : stride]
        sums += pixels @ weight[:, :, i, j].astype(np.float64).T
    return sums.astype(np.int64)


def float_convolution(
    x: Array,
    zero_point: int,
    kernels: Sequence[Kernel],
    fine: Array | None = None,
    residual: Array | None = None,
    stride: int = 1,
) -> Array:
    """Float32 [B, H / stride, W / stride, out], or [B, 2H, 2W, out] by four kernels of 2x2.

    Each rounding is the operator's.
    """
    batch, height, width, _ = x.shape
    zoom = 2 if len(kernels) == 4 else 1
    y = np.empty((batch, zoom * height // stride, zoom * width // stride, len(kernels[0].bias)), np.float32)
    for number, kernel in enumerate(kernels):
        down, right = divmod(number, 2)
        corner = (down + stride - 1, right + stride - 1)  # with stride 2 nothing is padded above and on the left
        sums = kernel_sums(x, zero_point, kernel.weight, corner, stride)
        if fine is None:
            numbers = float32(sums + kernel.bias)
        else:
            of_fine = kernel_sums(fine, FINE_ZERO, kernel.weight, corner, stride)
            numbers = float32(sums) + float32(of_fine + kernel.bias) * np.float32(1 / FINE_STEPS)
        y[:, down::zoom, right::zoom] = numbers * kernel.scale
    return y if residual is None else y + residual


def float32(sums: Array) -> Array:
    """Of int32 numbers."""
    return sums.astype(np.int32).astype(np.float32)


def convolution(x: Array, zero_point: int, kernels: Sequence[Kernel], stride: int = 1) -> Array:
    """Codes u8 of the same shape."""
    return np.clip(np.rint(float_convolution(x, zero_point, kernels, stride=stride)), 0, 255).astype(np.uint8)


def codes_and_fine(x: Array, scale: Array, zero_point: Array) -> tuple[Array, Array]:
    """Codes u8 of float32 numbers, and those of what they leave over; each rounding is the operators'."""

    def codes_of(numbers: Array, step: Array, zero: int) -> Array:
        return (np.clip(np.rint(numbers * (np.float32(1) / step)), -zero, 255 - zero) + zero).astype(np.uint8)

    coarse = codes_of(x, scale, int(zero_point))
    of_codes = scale * (coarse.astype(np.float32) - np.float32(zero_point))
    return coarse, codes_of(x - of_codes, scale / np.float32(FINE_STEPS), FINE_ZERO)


def group_norm(x: Array, weight: Array, bias: Array, groups: int, epsilon: float, silu: bool) -> Array:
    """Float64 [B, n, C] of numbers [B, n, C]."""
    batch, pixels, channels = x.shape
    parts = x.astype(np.float64).reshape(batch, pixels, groups, channels // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    normalized = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + epsilon)
    y: Array = normalized.reshape(x.shape) * weight + bias
    return y / (1 + np.exp(-y)) if silu else y
