"""What the codes of an integer attention's weights and values mean, in NumPy (docs/quantization.md, "Attention")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nextscale.graph_passes._dynamic_ranges import LEAST_SCALE
from nextscale.graph_passes.expand_attentive_tokens import FINEST, GRID
from nextscale.graph_passes.integer_model import attention_bits
from nextscale.graph_passes.layer_facts import GUIDED_ROWS
from nextscale.graph_passes.observe_attention import AttentionProduct
from nextscale.graph_passes.quantize_attention import POWERS

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Dequantized:
    """The operands that an integer product multiplies.

    Attributes:
        weights: A_hat, float64 [R, H, l, T].
        values: V_hat, float64 [R, H, T, d]; F / 2n for attentive tokens.
        representable: bool [R, H, l, T], the weights that log2's powers reach.
    """

    weights: Float64
    values: Float64
    representable: NDArray[np.bool_]


@dataclass(frozen=True)
class AttentionQuantizer:
    """How one attention of a bundle is quantized.

    Attributes:
        weights: "log2", "log2-row", "row" or "uniform".
        bits: of weights and values.
        value_scale: V's where it is static.
        theta: of shift-and-sum, if there is any.
        places: for each stage, or one for all.
    """

    weights: str
    bits: int
    value_scale: np.float32 | None = None
    theta: np.float32 | None = None
    places: tuple[int, ...] = ()

    @classmethod
    def of(cls, product: AttentionProduct, recipe: Mapping[str, Any]) -> AttentionQuantizer:
        """That of an integer product, by the bundle's recipe and what calibration left in the graph."""
        scale, theta, places = (product.constant(name) for name in ("value_scale", "theta", "places"))
        return cls(
            recipe["attention"]["weights"],
            attention_bits(recipe["activations"]["bits"], recipe.get("reduce_range", False)),
            None if scale is None else np.float32(scale),
            None if theta is None else np.float32(theta),
            () if places is None else tuple(places.tolist()),
        )

    def dequantize(self, a: Float32, v: Float32, stage: int) -> Dequantized:
        """What the codes of A [R, H, l, T] and V [R, H, T, d] mean at a stage."""
        shift = self._shift(a, stage)
        a_hat, representable = self._weights(a)
        return Dequantized(a_hat, self._values(v, shift), representable)

    def _shift(self, a: Float32, stage: int) -> NDArray[np.int64]:
        """m = log2(2n) of each token (Eq. 14), 0 where it isn't expanded: int64 [R, H, T]."""
        tokens = a.shape[:2] + a.shape[3:]
        if self.theta is None:
            return np.zeros(tokens, np.int64)
        score = a.mean(axis=2, dtype=np.float32)  # Eq. 11
        doublings = np.float32(2) ** np.arange(FINEST.bit_length() - 1, dtype=np.float32)
        shift = (score[..., None] > self.theta * doublings).sum(-1)
        places = self.places[stage if len(self.places) > 1 else 0]
        rank = np.argsort(np.argsort(-score, axis=-1, kind="stable"), axis=-1, kind="stable")
        return np.where(rank < places, shift, 0)

    def _values(self, v: Float32, shift: NDArray[np.int64]) -> Float64:
        qmax, zero_point = 2**self.bits - 1, 2 ** (self.bits - 1)
        if self.value_scale is None:
            scale = _positive(_largest(np.abs(v)) * np.float32(2 / qmax))
        else:
            scale = np.full((1, 1, 1, 1), self.value_scale)
        if self.theta is None:
            codes = np.clip(np.round(v / scale), -zero_point, zero_point - 1)
        else:
            u = np.round(v * (np.float32(GRID) / scale)).astype(np.float64) / GRID
            u = np.clip(u + zero_point, -1, qmax + 1)
            two_n = np.exp2(shift)[..., None]
            codes = np.clip(np.floor(two_n * u + 0.5), 0, two_n * qmax) / two_n - zero_point  # F / 2n
        return codes.astype(np.float64) * scale.astype(np.float64)

    def _weights(self, a: Float32) -> tuple[Float64, NDArray[np.bool_]]:
        qmax, rowmax = 2**self.bits - 1, a.max(axis=-1, keepdims=True)
        representable = np.ones(a.shape, bool)
        if self.weights.startswith("log2"):
            s = _largest(a) if self.weights == "log2" else rowmax
            with np.errstate(divide="ignore", over="ignore"):
                x = np.round(np.log(s / a) / np.float32(math.log(2)))
            representable = x <= qmax
            x = np.clip(x, 0, qmax)  # Eq. 4
            is_zero = x - x.min(axis=-1, keepdims=True) >= POWERS
            representable &= ~is_zero
            codes, unit = np.where(is_zero, 0, np.exp2(-x.astype(np.float64))), s.astype(np.float64)
        else:
            scale = _positive(rowmax * np.float32(1 / qmax)) if self.weights == "row" else np.float32(1 / qmax)
            codes = np.clip(np.round(a / scale), 0, qmax).astype(np.float64)
            unit = np.asarray(scale, np.float64)
        if self.weights in ("row", "log2-row"):
            return codes / codes.sum(axis=-1, keepdims=True), representable
        return codes * unit, representable


def _largest(x: Float32) -> Float32:
    """The largest entry of each image, given to each of its rows: [R, ...] -> [R, 1, 1, 1]."""
    largest = x.reshape(GUIDED_ROWS, len(x) // GUIDED_ROWS, -1).max(axis=(0, 2))
    return np.tile(largest, GUIDED_ROWS).reshape(-1, 1, 1, 1)


def _positive(scale: Float32) -> Float32:
    """The scale, or the least that there is."""
    return np.maximum(scale, np.float32(LEAST_SCALE))
