"""Matching of bits: how many move and which, against an oracle bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextscale.calib_data.match_bits import BitMatchingReport, match_bits
from nextscale.calib_data.match_probabilities import match_probabilities

M, D = 400, 6


def drawn(seed: int, tokens: int = M) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Bits and their probabilities, of which a third is certain, as top_p makes them."""
    rng = np.random.default_rng(seed)
    p = rng.random((tokens, D)).astype(np.float32)
    p = np.where(rng.random((tokens, D)) < 1 / 3, np.round(p), p).astype(np.float32)
    return (rng.random((tokens, D)) < p).astype(np.uint8), p


def surplus(bits: NDArray[np.uint8], p: NDArray[np.float32]) -> NDArray[np.float64]:
    """s - t of the value 1, of each bit."""
    found: NDArray[np.float64] = bits.sum(0, dtype=np.int64) - p.sum(0, dtype=np.float64)
    return found


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_ones_are_as_frequent_as_they_are_probable(seed: int, tokens: int) -> None:
    """To half a token, unless too few bits may move; none moves that top_p decides, and none in vain."""
    bits, p = drawn(seed, tokens)
    found = match_bits(bits, p, np.random.default_rng(seed))
    before, after = surplus(bits, p), surplus(found.bits, p)
    changed = found.bits != bits
    assert found.moved == changed.sum() <= found.wanted
    movable = (p > 0) & (p < 1)
    assert not (changed & ~movable).any()
    for bit in range(D):
        if abs(before[bit]) < 1:
            assert not changed[:, bit].any()
            continue
        held = bits[:, bit] == (before[bit] > 0)
        assert not (changed[:, bit] & ~held).any()
        if changed[:, bit].sum() < (held & movable[:, bit]).sum():
            assert abs(after[bit]) <= 0.5 + 1e-9
        else:
            assert abs(after[bit]) <= abs(before[bit])


def test_each_bit_is_matched_as_a_codebook_of_two_entries_is() -> None:
    """As many tokens move as `match_probabilities` moves, to which one bit is the whole codebook, or one more.

    It stops where an entry lacks less than one token; here the nearest number moves.
    """
    bits, p = drawn(1)
    found = match_bits(bits, p, np.random.default_rng(0))
    for bit in range(D):
        both = np.stack((1 - p[:, bit], p[:, bit]), axis=1).astype(np.float64)

        def kept(token: int, both: NDArray[np.float64] = both) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            ids = np.flatnonzero(both[token])
            return ids, both[token, ids]

        expected = match_probabilities(bits[:, bit].astype(np.int64), kept, both.mean(0), np.random.default_rng(0))
        moved = int((found.bits[:, bit] != bits[:, bit]).sum())
        assert moved - len(expected.moved) in (0, 1)


def test_likelier_bits_move_more_often() -> None:
    """Half of the ones may become 0 with probability 0.4, half with 0.1: of the first about four times as many do."""
    p = np.repeat(np.float32([0.6, 0.9]), 2000)[:, None]
    bits = np.ones_like(p, np.uint8)
    found = match_bits(bits, p, np.random.default_rng(0))
    moved = (found.bits == 0).reshape(2, -1).sum(1)
    assert moved.sum() == 2000 * 0.4 + 2000 * 0.1
    # Fewer than four, since the likely ones run out: d/dt of both is in proportion to what is left of them.
    left = 1 - moved / 2000
    assert np.log(left[0]) / np.log(left[1]) == pytest.approx(4, rel=0.15)


def test_a_seed_decides_and_the_given_bits_stay() -> None:
    bits, p = drawn(2)
    before = bits.copy()
    first, same, other = (match_bits(bits, p, np.random.default_rng(seed)).bits for seed in (0, 0, 1))
    np.testing.assert_array_equal(bits, before)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_a_report_survives_its_file_and_joins() -> None:
    bits, p = drawn(3)
    found = match_bits(bits, p, np.random.default_rng(0))
    counts = np.array([M]), p.sum(0, dtype=np.float64)[None], bits.sum(0, dtype=np.int64, keepdims=True)
    after = found.bits.sum(0, dtype=np.int64, keepdims=True)
    report = BitMatchingReport(*counts, after, found.wanted, found.moved, found.log_before, found.log_after)
    read = BitMatchingReport.from_arrays(report.arrays())
    assert read.as_json() == report.as_json()
    both = BitMatchingReport.join([report, report])
    assert (both.moved, both.tokens.tolist()) == (2 * found.moved, [M, M])
    figures = both.as_json()
    assert figures["total_variation"]["after"]["all"] < 0.5 / M + 1e-9
    assert figures["total_variation"]["before"]["all"] == pytest.approx(np.abs(surplus(bits, p)).mean() / M)
    logs = figures["log_probability_of_moved"]
    changed = found.bits != bits
    was = np.where(bits == 1, p, 1 - p)[changed].astype(np.float64)
    assert logs["before"] == pytest.approx(np.log(was).mean(), rel=1e-5)
    assert logs["after"] == pytest.approx(np.log(1 - was).mean(), rel=1e-5)


def test_without_a_bit_that_moves_there_is_no_log_probability() -> None:
    report = BitMatchingReport(np.array([2]), np.ones((1, 1)), *(np.ones((1, 1), np.int64),) * 2)
    assert report.as_json()["log_probability_of_moved"] == {"before": None, "after": None}
