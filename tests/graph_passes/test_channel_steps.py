"""Steps of channels: as a search over zero points in plain Python finds them; what they can represent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.graph_passes._channel_steps import channel_steps
from nextscale.graph_passes.qparams import Range

ENDS = st.floats(-1000, 1000, width=32)


def range_of(ends: list[tuple[float, float]]) -> Range:
    """Of pairs of ends in any order."""
    both = np.array(ends, np.float32)
    return Range(both.min(1), both.max(1))


def step(low: float, high: float, zero_point: int) -> float:
    """The least one with which 0 to 255 reach both ends; infinite if nothing does."""
    sides = [(max(high, 0), 255 - zero_point), (max(-low, 0), zero_point)]
    return max((end / codes if codes else float("inf") if end else 0.0) for end, codes in sides)


def lost(observed: Range, energy: list[float], zero_point: int) -> float:
    ends = zip(observed.minimum.tolist(), observed.maximum.tolist(), energy, strict=True)
    return sum(step(low, high, zero_point) ** 2 * of_channel for low, high, of_channel in ends if of_channel)


@given(
    st.lists(st.tuples(ENDS, ENDS), min_size=2, max_size=6),
    st.lists(st.floats(2**-10, 100, width=32), min_size=6, max_size=6),
)
def test_the_zero_point_loses_the_least(ends: list[tuple[float, float]], energies: list[float]) -> None:
    observed, energy = range_of(ends), energies[: len(ends)]
    steps, zero_point = channel_steps(observed, np.array(energy, np.float32))
    assert steps.dtype == np.float32
    least = min(lost(observed, energy, z) for z in range(256))
    assert lost(observed, energy, zero_point) <= least * (1 + 1e-9)
    exact = [step(low, high, zero_point) for low, high in zip(observed.minimum, observed.maximum, strict=True)]
    alive = [one for one in exact if one > 1.2e-38]  # float32's normal numbers
    expected = [one if one > 1.2e-38 else min(alive, default=1) for one in exact]
    assert steps.tolist() == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.tuples(ENDS, ENDS), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_all_that_was_observed_has_codes(ends: list[tuple[float, float]], seed: int) -> None:
    observed = range_of(ends)
    steps, zero_point = channel_steps(observed, np.ones(len(ends), np.float32))
    x = np.random.default_rng(seed).uniform(observed.minimum, observed.maximum, (50, len(ends)))
    codes = np.clip(np.round(x / steps) + zero_point, 0, 255)
    # Codes are rounded to whole ones, and so is the step, to float32.
    assert np.all(np.abs((codes - zero_point) * steps - x) <= steps * (0.5 + 1e-4))


def test_a_channel_without_weights_does_not_matter() -> None:
    of_one = channel_steps(range_of([(-1, 3)]), np.ones(1, np.float32))
    both = channel_steps(range_of([(-1, 3), (-900, 0)]), np.array([1, 0], np.float32))
    assert both[1] == of_one[1]
    assert both[0][0] == of_one[0][0]


def test_a_channel_that_was_always_zero_has_the_least_step() -> None:
    steps, _ = channel_steps(range_of([(-1, 3), (0, 0), (-0.5, 0.1)]), np.ones(3, np.float32))
    assert steps[1] == min(steps[0], steps[2])


def test_nothing_but_zeros() -> None:
    steps, _ = channel_steps(range_of([(0, 0), (0, 0)]), np.ones(2, np.float32))
    assert steps.tolist() == [1, 1]
