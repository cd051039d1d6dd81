import math

import numpy as np
import pytest

from nextscale.measure.statistics import Interval, mean_interval, ratio_interval, t_quantile


def test_t_quantiles() -> None:
    assert t_quantile(4) == 2.776
    assert t_quantile(40) == pytest.approx(2.0211, abs=5e-4)  # published table
    assert t_quantile(120) == pytest.approx(1.9799, abs=5e-4)


def test_mean_interval_by_hand() -> None:
    interval = mean_interval([1, 2, 3])  # s = 1
    half = 4.303 / math.sqrt(3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2, 2 - half, 2 + half))


def test_one_sample_has_no_interval() -> None:
    interval = mean_interval([3.0])
    assert interval.mean == 3
    assert math.isnan(interval.low)


def test_a_common_drift_cancels_in_the_ratio() -> None:
    drift = np.linspace(1, 3, 10)
    interval = ratio_interval((2.5 * drift).tolist(), drift.tolist())
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.5, 2.5, 2.5))


def test_inverted_swaps_the_ends() -> None:
    assert Interval(2.0, 1.0, 4.0).inverted() == Interval(0.5, 0.25, 1.0)
    assert Interval(2.0, -1.0, 5.0).inverted().high == math.inf


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(5, 2, size=6).tolist()) for _ in range(2000)]
    covered = np.mean([interval.low <= 5 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)  # four standard errors


def test_the_half_width_of_a_logarithm() -> None:
    assert Interval(2.0, 2.0 / 1.1, 2.0 * 1.1).log_half_width == pytest.approx(math.log(1.1))
