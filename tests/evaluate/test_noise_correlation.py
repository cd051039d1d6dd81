"""Table A's correlations against NumPy's of the pairs one by one."""

from __future__ import annotations

import numpy as np
import pytest

from nextscale.evaluate._noise_correlation import PairSums, noise_pairs

Rng = np.random.Generator


def every_pair(seed: int) -> tuple[np.ndarray, list[list[tuple[float, float]]]]:
    """What `noise_pairs` makes of random noises, and all pairs of each kind."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows, heads, queries, tokens, width = (int(n) for n in rng.integers(2, 5, 5))
    a = rng.random((rows, heads, queries, tokens))
    a[rng.random(a.shape) < 0.1] = 0
    shared = rng.normal(size=(rows, heads, 1, tokens))  # so that correlations are not near zero
    e = a * (rng.normal(size=a.shape) + shared)
    f = rng.normal(size=(rows, heads, tokens, width)) + np.swapaxes(shared, -1, -2) + rng.normal(size=(rows, 1, 1, 1))
    representable = rng.random(a.shape) < 0.8
    valid = representable & (a > 0)
    pairs: list[list[tuple[float, float]]] = [[], [], []]
    for r in range(rows):
        for h in range(heads):
            for i in range(tokens):
                for q in np.flatnonzero(valid[r, h, :, i]):
                    x = e[r, h, q, i] / a[r, h, q, i]
                    pairs[0] += [
                        (x, e[r, h, q, k] / a[r, h, q, k]) for k in range(tokens) if k != i and valid[r, h, q, k]
                    ]
                    pairs[1] += [(x, y) for y in f[r, h, i]]
                for k in range(tokens):
                    if k != i:
                        pairs[2] += list(zip(f[r, h, i], f[r, h, k], strict=True))
    return noise_pairs(a, e, f, representable), pairs


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_those_of_all_pairs(seed: int) -> None:
    sums, pairs = every_pair(seed)
    found = PairSums(sums)
    assert found.pairs.tolist() == [len(kind) for kind in pairs]
    expected = [np.corrcoef(np.array(kind).T)[0, 1] for kind in pairs]
    # Sums of some hundred numbers near 1, in float64.
    np.testing.assert_allclose(found.correlation(), expected, rtol=0, atol=1e-10)


def test_sums_of_two_parts_are_those_of_the_whole() -> None:
    (first, first_pairs), (second, second_pairs) = every_pair(10), every_pair(11)
    together = [a + b for a, b in zip(first_pairs, second_pairs, strict=True)]
    expected = [np.corrcoef(np.array(kind).T)[0, 1] for kind in together]
    np.testing.assert_allclose(PairSums(first + second).correlation(), expected, rtol=0, atol=1e-10)


def test_a_constant_and_no_pairs_have_no_correlation() -> None:
    zeros, ones = np.zeros((1, 1, 2, 3)), np.ones((1, 1, 2, 3), bool)
    constant = np.full((1, 1, 3, 4), 0.1)
    assert np.isnan(PairSums(noise_pairs(zeros + 0.5, zeros + 0.1, constant, ones)).correlation()).all()
    one_token = noise_pairs(
        np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 1)), np.ones((1, 1, 1, 4)), np.ones((1, 1, 2, 1), bool)
    )
    assert PairSums(one_token).pairs.tolist() == [0, 8, 0]
    assert np.isnan(PairSums(one_token).correlation()).all()


def test_the_same_noise_everywhere_is_fully_correlated() -> None:
    x = np.random.default_rng(0).normal(size=(50, 1)) * np.ones(4)
    assert PairSums.within(x, np.ones_like(x, bool)).correlation() == pytest.approx(1)


def test_independent_noises_are_not_correlated() -> None:
    """Within five standard errors of 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 40))
    found = PairSums.within(x, np.ones_like(x, bool))
    # Each pair counts both ways, so that half of them are independent.
    assert abs(found.correlation()) < 5 / np.sqrt(found.pairs / 2)
