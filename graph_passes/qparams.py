"""Quantization parameters: how real numbers become u8 activations and s8 weights (Eq. 1 to 3).

x_hat = clip(round(x / scale) + zero_point, qmin, qmax);  x ~ scale * (x_hat - zero_point)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ACTIVATION_QMIN, ACTIVATION_QMAX = 0, 255
WEIGHT_QMIN, WEIGHT_QMAX = -127, 127


def _step(span: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """span / steps; where that is no normal number 1, so that all there becomes zero."""
    step = span / np.float32(steps)
    return np.where(step >= np.finfo(np.float32).tiny, step, 1).astype(np.float32)


@dataclass(frozen=True)
class Range:
    """The smallest and largest value observed: float32 [S] each, one a stage or one alone; [S, C] for channels."""

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]

    def merge(self, other: Range) -> Range:
        """The range that holds both."""
        return Range(np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum))

    def magnitude(self) -> NDArray[np.float32]:
        """The largest magnitude of each channel over all stages: [S, C] -> [C]."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum)).max(axis=0)

    def equalized(self, factors: NDArray[np.float32]) -> Range:
        """The range over all channels once each is divided by its factor: [S, C], [C] -> [S]."""
        return Range((self.minimum / factors).min(axis=1), (self.maximum / factors).max(axis=1))


@dataclass(frozen=True)
class ActivationQParams:
    """u8, affine: scale float32 [S] and zero_point uint8 [S]."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]

    @classmethod
    def from_range(cls, observed: Range) -> ActivationQParams:
        """Min-max parameters (Eq. 2, 3) of a range that is first widened to hold zero, which stays exact."""
        low, high = np.minimum(observed.minimum, 0), np.maximum(observed.maximum, 0)
        scale = _step(high - low, ACTIVATION_QMAX - ACTIVATION_QMIN)
        zero_point = np.clip(np.round(-low / scale), ACTIVATION_QMIN, ACTIVATION_QMAX)
        return cls(scale, zero_point.astype(np.uint8))

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """x of any shape to u8 with the first stage's parameters."""
        with np.errstate(over="ignore"):  # infinity is clipped like all that is too large
            codes = np.round(x / self.scale[0]) + self.zero_point[0]
        return np.clip(codes, ACTIVATION_QMIN, ACTIVATION_QMAX).astype(np.uint8)

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """u8 codes of any shape to float32 with the first stage's parameters."""
        return (codes.astype(np.float32) - self.zero_point[0]) * self.scale[0]


@dataclass(frozen=True)
class QuantizedWeight:
    """s8, symmetric, a scale for each output channel."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]

    @classmethod
    def per_channel(cls, weight: NDArray[np.float32], axis: int) -> QuantizedWeight:
        """Round to nearest, the largest magnitude of each slice along `axis` at 127; scale is [weight.shape[axis]]."""
        others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
        magnitude = np.abs(weight).max(axis=others)
        scale = _step(magnitude, WEIGHT_QMAX)
        shape = [1] * weight.ndim
        shape[axis] = -1
        codes = np.clip(np.round(weight / scale.reshape(shape)), WEIGHT_QMIN, WEIGHT_QMAX)
        return cls(codes.astype(np.int8), scale)
