"""Means and ratios with 95% confidence intervals (Student's t)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% confidence interval; the ends are NaN where one sample tells nothing of them."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        return Interval(self.mean * factor, self.low * factor, self.high * factor)

    @property
    def log_half_width(self) -> float:
        """Half the width of the interval of a positive estimate's logarithm: 0.02 is about 2% either way."""
        return math.log(self.high / self.low) / 2

    def inverted(self) -> "Interval":
        """The interval of 1/x for a positive x."""
        return Interval(1 / self.mean, 1 / self.high, 1 / self.low if self.low > 0 else math.inf)


def mean_interval(samples: Sequence[float]) -> Interval:
    """The mean of independent samples: mean +- t s / sqrt(n)."""
    values = np.asarray(samples, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The geometric mean ratio of positive samples taken in pairs, from the differences of their logarithms."""
    logs = mean_interval(np.log(np.asarray(numerators) / np.asarray(denominators)).tolist())
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t; above 30 degrees of freedom by Fisher's expansion around the normal's."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
