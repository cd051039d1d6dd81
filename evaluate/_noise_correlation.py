"""Are the quantization noises of attention independent, as Eq. 8 assumes? (The paper's Appendix A, Table A.)

Of the noises of Eq. 7, e_i = (a_hat_i - a_i) / a_i of attention weights and f_ij = v_hat_ij - v_ij of values:

    weights            e_i and e_k of one query, i != k
    weights and values e_i and f_ij
    values             f_ij and f_kj of one head, i != k

Pearson's correlation over all such pairs, none sampled: the sum of x_i x_k over i != k is the square of the sum of x
less the sum of squares. Sums can be added, so any number of images takes the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PAIRS = ("weights", "weights and values", "values")
Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class PairSums:
    """Sums over pairs (x, y): of 1, x, y, x^2, y^2 and x y; float64 [..., 6]."""

    sums: Array

    @classmethod
    def within(cls, x: Array, valid: NDArray[np.bool_]) -> PairSums:
        """The pairs (x_i, x_k), i != k, along the last axis of x, of those that are valid; each pair both ways."""
        x = np.where(valid, x, 0)
        partners = np.maximum(valid.sum(-1) - 1, 0).astype(np.float64)
        first, second = x.sum(-1), np.square(x).sum(-1)
        pairs = float((partners * valid.sum(-1)).sum())
        mean, square = float((partners * first).sum()), float((partners * second).sum())
        return cls(np.array([pairs, mean, mean, square, square, (np.square(first) - second).sum()]))

    @classmethod
    def between(cls, x: Array, valid: NDArray[np.bool_], y: Array) -> PairSums:
        """The pairs (x_qi, y_ij) of x [..., l, T], where valid, and y [..., T, d], for all q, i and j."""
        x = np.where(valid, x, 0)
        width, times = y.shape[-1], valid.sum(-2).astype(np.float64)
        return cls(
            np.array(
                [
                    times.sum() * width,
                    x.sum() * width,
                    (times * y.sum(-1)).sum(),
                    np.square(x).sum() * width,
                    (times * np.square(y).sum(-1)).sum(),
                    (x.sum(-2) * y.sum(-1)).sum(),
                ]
            )
        )

    @property
    def pairs(self) -> Array:
        """How many, [...]."""
        return self.sums[..., 0]

    def correlation(self) -> Array:
        """Pearson's, [...]; NaN where there are no pairs or one side is constant."""
        with np.errstate(divide="ignore", invalid="ignore"):
            x, y, xx, yy, xy = np.moveaxis(self.sums[..., 1:] / self.sums[..., :1], -1, 0)
            variances = (xx - x * x) * (yy - y * y)
            # What rounding leaves of the variance of a constant is no variance.
            found: Array = np.where(variances > 1e-24 * xx * yy, (xy - x * y) / np.sqrt(variances), np.nan)
        return found


def noise_pairs(a: Array, weights: Array, values: Array, representable: NDArray[np.bool_]) -> Array:
    """The sums of the three kinds of pairs in one attention: float64 [3, 6].

    Args:
        a: weights, [R, H, l, T].
        weights: their noise, a_hat - a.
        values: the values' noise, v_hat - v: [R, H, T, d].
        representable: the weights whose noise counts, [R, H, l, T]; of weights of zero there is no relative noise.
    """
    valid = representable & (a > 0)
    relative = np.divide(weights, a, out=np.zeros_like(a), where=valid)
    absolute = np.swapaxes(values, -1, -2)
    return np.stack(
        [
            PairSums.within(relative, valid).sums,
            PairSums.between(relative, valid, values).sums,
            PairSums.within(absolute, np.ones_like(absolute, bool)).sums,
        ]
    )
