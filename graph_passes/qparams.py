"""Quantization parameters: how real numbers become u8 activations and s8 weights (Eq. 1 to 3).

x_hat = clip(round(x / scale) + zero_point, qmin, qmax);  x ~ scale * (x_hat - zero_point)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WEIGHT_QMIN, WEIGHT_QMAX = -127, 127
# Without VNNI, x86 adds the products of two neighbours along the reduction in 16 bits and cuts off what is beyond
# (vpmaddubsw).
PAIR_LIMIT = 2**15 - 1
# Of two bytes that are one number's codes, the first has 7 bits too: in its range no pair of products leaves 16 bits.
FINE_STEPS = 128
TWO_BYTE_BITS = 7

RangeRule = Literal["max", "percentile", "mse"]
WEIGHT_PERCENTILES = (0.1, 99.9)
MSE_FACTORS = tuple(np.float32(percent / 100) for percent in range(99, 39, -1))


def _step(span: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """span / steps; where that is no normal number 1, so that all there becomes zero."""
    step = span / np.float32(steps)
    return np.where(step >= np.finfo(np.float32).tiny, step, 1).astype(np.float32)


@dataclass(frozen=True)
class Range:
    """The smallest and largest value observed: float32 [S] each, one per stage or one alone; [S, C] for channels."""

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]

    def merge(self, other: Range) -> Range:
        """The range that holds both."""
        return Range(np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum))

    def magnitude(self) -> NDArray[np.float32]:
        """The largest magnitude of each channel over all stages: [S, C] -> [C]."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum)).max(axis=0)

    def over_stages(self) -> Range:
        """One range for all stages: [S] -> [1]."""
        return Range(self.minimum.min(keepdims=True), self.maximum.max(keepdims=True))

    def equalized(self, factors: NDArray[np.float32]) -> Range:
        """The range over all channels once each is divided by its factor: [S, C], [C] -> [S]."""
        return Range((self.minimum / factors).min(axis=1), (self.maximum / factors).max(axis=1))


@dataclass(frozen=True)
class ActivationQParams:
    """u8, affine: scale float32 [S] and zero_point uint8 [S]; codes from 0 to qmax."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]
    qmax: int = 255

    @classmethod
    def from_range(cls, observed: Range, bits: int = 8) -> ActivationQParams:
        """Min-max parameters (Eq. 2, 3) of a range that is first widened to hold zero, which stays exact."""
        low, high, qmax = np.minimum(observed.minimum, 0), np.maximum(observed.maximum, 0), 2**bits - 1
        scale = _step(high - low, qmax)
        zero_point = np.clip(np.round(-low / scale), 0, qmax)
        return cls(scale, zero_point.astype(np.uint8), qmax)

    def fine(self) -> ActivationQParams:
        """Of what codes in these leave over: one more byte, in steps that are FINE_STEPS times as small.

        x ~ scale (x_hat - zero_point) + scale / 128 (left - 64)
        """
        return ActivationQParams(self.scale / np.float32(FINE_STEPS), np.full_like(self.zero_point, FINE_STEPS // 2))

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """x of any shape to u8 with the first stage's parameters."""
        with np.errstate(over="ignore"):  # infinity is clipped like all that is too large
            codes = np.round(x / self.scale[0]) + self.zero_point[0]
        return np.clip(codes, 0, self.qmax).astype(np.uint8)

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """u8 codes of any shape to float32 with the first stage's parameters."""
        return (codes.astype(np.float32) - self.zero_point[0]) * self.scale[0]


@dataclass(frozen=True)
class QuantizedWeight:
    """s8, a scale and a smallest code for each output channel; zero is 0, also below 8 bits."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    qmin: NDArray[np.int8]

    @classmethod
    def per_channel(
        cls, weight: NDArray[np.float32], axis: int, bits: int = 8, rule: RangeRule = "max"
    ) -> QuantizedWeight:
        """Round `weight` to nearest; scale is [weight.shape[axis]]."""
        qparams = WeightQParams.choose(weight, axis, bits, rule)
        return cls(qparams.quantize(weight, axis), qparams.scale, qparams.qmin)

    @classmethod
    def reduced_range(
        cls, weight: NDArray[np.float32], axis: int, bits: int, rule: RangeRule, activation_bits: int
    ) -> QuantizedWeight:
        """The same in steps so coarse that no pair of products with u8 activations leaves 16 bits.

        Args:
            weight: sliced along `axis`, the reduction is over the other axes in their order.
            axis, bits, rule: as for `per_channel`.
            activation_bits: of the activations.
        """
        qparams = WeightQParams.choose(weight, axis, bits, rule)
        clipped = qparams.clip(weight, axis)
        channels = np.moveaxis(clipped, axis, 0).reshape(weight.shape[axis], -1)
        # One less than fits: rounding adds half a step to either.
        most = np.float32(PAIR_LIMIT // (2**activation_bits - 1) - 1)
        scale = np.maximum(qparams.scale, largest_pair_sum(channels) / most)
        coarse = WeightQParams(scale, qparams.qmin, qparams.qmax)
        return cls(coarse.quantize(clipped, axis), scale, qparams.qmin)


def largest_pair_sum(rows: NDArray) -> NDArray:
    """The largest magnitude that two neighbours of one sign add up to in each row; a last one alone counts too.

    Neighbours are 0 and 1, 2 and 3, ...: [N, K] -> [N].
    """
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    by_sign = [np.maximum(padded, 0), np.maximum(-padded, 0)]
    largest: NDArray = np.max([(part[:, ::2] + part[:, 1::2]).max(axis=1) for part in by_sign], axis=0)
    return largest


@dataclass(frozen=True)
class WeightQParams:
    """How the channels of a weight are rounded: scale float32 [N], and the ends of the codes, int8 [N] each."""

    scale: NDArray[np.float32]
    qmin: NDArray[np.int8]
    qmax: NDArray[np.int8]

    @classmethod
    def choose(cls, weight: NDArray[np.float32], axis: int, bits: int, rule: RangeRule) -> WeightQParams:
        """Parameters of each slice of `weight` along `axis`, with a range chosen by `rule` (docs/quantization.md)."""
        channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        if rule == "percentile":
            low, high = np.percentile(channels, WEIGHT_PERCENTILES, axis=1).astype(np.float32)
        else:
            low, high = channels.min(axis=1), channels.max(axis=1)
        best = cls.from_range(low, high, bits)
        if rule != "mse":
            return best
        least = best._squared_error(channels)
        for factor in MSE_FACTORS:
            found = cls.from_range(low * factor, high * factor, bits)
            error = found._squared_error(channels)
            better = error < least
            least = np.where(better, error, least)
            best = cls(*(np.where(better, new, old) for new, old in zip(found._fields(), best._fields(), strict=True)))
        return best

    @classmethod
    def from_range(cls, low: NDArray[np.float32], high: NDArray[np.float32], bits: int) -> WeightQParams:
        """Eq. 2 with the zero point taken off the codes; at 8 bits symmetric, since s8 holds no other."""
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        if bits == 8:
            ends = np.full(len(low), WEIGHT_QMAX, np.int8)
            return cls(_step(np.maximum(-low, high), WEIGHT_QMAX), -ends, ends)
        steps = 2**bits - 1
        scale = _step(high - low, steps)
        zero_point = np.clip(np.round(-low / scale), 0, steps)
        return cls(scale, (-zero_point).astype(np.int8), (steps - zero_point).astype(np.int8))

    def clip(self, weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """The nearest values that have a code, before rounding."""
        scale, qmin, qmax = (field.reshape(self._shape(weight.ndim, axis)) for field in self._fields())
        return np.clip(weight, qmin * scale, qmax * scale)

    def quantize(self, weight: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
        """The nearest codes, of `weight`'s shape."""
        scale, qmin, qmax = (field.reshape(self._shape(weight.ndim, axis)) for field in self._fields())
        return np.clip(np.round(weight / scale), qmin, qmax).astype(np.int8)

    def _squared_error(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        error = self.quantize(channels, 0) * self.scale[:, None] - channels
        squared: NDArray[np.float32] = (error * error).sum(axis=1)
        return squared

    def _fields(self) -> tuple[NDArray, NDArray, NDArray]:
        return self.scale, self.qmin, self.qmax

    @staticmethod
    def _shape(ndim: int, axis: int) -> list[int]:
        shape = [1] * ndim
        shape[axis] = -1
        return shape
