"""GPTQ's codes: those of its definition, and outputs nearer than by rounding to nearest."""

import numpy as np
import pytest

from nextscale.graph_passes import gptq as module
from nextscale.graph_passes.gptq import DAMPING, gptq
from nextscale.graph_passes.qparams import WEIGHT_QMAX, WEIGHT_QMIN, WeightQParams

ENDS = (WEIGHT_QMIN, WEIGHT_QMAX)
SEEDS = range(20)


def random_weight(rng, out, size):
    weight = (rng.standard_normal((out, size)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    return weight, WeightQParams.choose(weight, 0, 8, "max").scale


def correlated_inputs(rng, size, rows=200):
    """Sums of few sources and a little of their own, each input of a size of its own."""
    sources = rng.standard_normal((rows, max(1, size // 4))) @ rng.standard_normal((max(1, size // 4), size))
    return ((sources + 0.1 * rng.standard_normal((rows, size))) * rng.uniform(0.1, 3, size)).astype(np.float32)


def nearest(weight, scale, qmin=WEIGHT_QMIN, qmax=WEIGHT_QMAX):
    return np.clip(np.round(weight / scale[:, None]), qmin, qmax).astype(np.int8)


def errors(weight, codes, scale, x):
    """|x (w - q)'|^2 of each row."""
    return np.square(x.astype(np.float64) @ (weight - codes * scale[:, None].astype(np.float64)).T).sum(axis=0)


def by_definition(row, x, scale, qmin, qmax):
    """One weight at a time is rounded for good; those left then take the values that make the outputs nearest.

    Least squares over the inputs and, for the damping, one small input of each alone.
    """
    size = len(row)
    diagonal = np.square(x).sum(axis=0)
    a = np.concatenate([x, np.sqrt(DAMPING * diagonal.mean()) * np.eye(size)])
    values, rest = row.copy(), list(np.argsort(-diagonal, kind="stable"))
    codes = np.zeros(size, np.int8)
    while rest:
        j = rest.pop(0)
        codes[j] = np.clip(np.round(values[j] / scale), qmin, qmax)
        values[j] = codes[j] * scale
        if rest:
            done = [i for i in range(size) if i not in rest]
            values[rest] = np.linalg.lstsq(a[:, rest], a @ row - a[:, done] @ values[done], rcond=None)[0]
    simply = np.clip(np.round(row / scale), qmin, qmax)
    kept, other = (np.square(a @ (row - q * scale)).sum() for q in (codes, simply))
    return codes if kept < other else simply.astype(np.int8)


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    weight, scale = random_weight(rng, 6, size)
    # Few codes, so that ends are met too.
    scale, ends = scale * np.float32(rng.choice([1, 16])), (-7, 5)
    x = correlated_inputs(rng, size).astype(np.float64)
    found = gptq(weight, x.T @ x, scale, *ends)
    rows = zip(weight.astype(np.float64), scale.astype(np.float64), strict=True)
    wanted = [by_definition(row, x, step, *ends) for row, step in rows]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_row_is_farther_than_by_rounding_to_nearest(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 80))
    weight, scale = random_weight(rng, 30, size)
    # Fewer inputs than weights too: moments that have no inverse.
    x = rng.standard_normal((int(rng.integers(1, 100)), size)).astype(np.float32) + np.float32(rng.integers(0, 3))
    found = gptq(weight, x.T @ x, scale, *ENDS)
    before, after = errors(weight, nearest(weight, scale), scale, x), errors(weight, found, scale, x)
    # The moments are sums of up to 100 products in float32.
    assert np.all(after <= before * (1 + 1e-5) + 1e-5 * np.square(scale) * np.square(x).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_correlated_inputs_gain(seed):
    rng = np.random.default_rng(seed)
    weight, scale = random_weight(rng, 16, 64)
    x = correlated_inputs(rng, 64)
    found = gptq(weight, x.T @ x, scale, *ENDS)
    assert errors(weight, found, scale, x).sum() < 0.5 * errors(weight, nearest(weight, scale), scale, x).sum()


@pytest.mark.parametrize("diagonal", [[3.0, 0.5, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0], [0.0] * 4, [1e-300] * 4, [1e30] * 4])
def test_uncorrelated_inputs_are_rounded_to_nearest(diagonal):
    weight, scale = random_weight(np.random.default_rng(0), 50, 4)
    wanted = WeightQParams.choose(weight, 0, 8, "max").quantize(weight, 0)
    np.testing.assert_array_equal(gptq(weight, np.diag(diagonal), scale, *ENDS), wanted)


def test_an_input_that_is_always_zero_is_rounded_to_nearest():
    rng = np.random.default_rng(0)
    weight, scale = random_weight(rng, 16, 32)
    x = correlated_inputs(rng, 32)
    x[:, [0, 7, 31]] = 0
    found = gptq(weight, x.T @ x, scale, *ENDS)
    np.testing.assert_array_equal(found[:, [0, 7, 31]], nearest(weight, scale)[:, [0, 7, 31]])
    assert np.any(found != nearest(weight, scale))


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    weight, scale = random_weight(rng, 20, 150)
    x = correlated_inputs(rng, 150)
    found = []
    for block in (1, 7, 128, 150, 1000):
        monkeypatch.setattr(module, "BLOCK", block)
        found.append(gptq(weight, x.T @ x, scale, *ENDS))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("factor", [1, 2.0**-20, 2.0**20])
def test_a_multiple_of_the_moments_is_as_good(factor):
    rng = np.random.default_rng(0)
    weight, scale = random_weight(rng, 8, 32)
    x = correlated_inputs(rng, 32)
    moments = x.T @ x
    wanted = gptq(weight, moments.astype(np.float64), scale, *ENDS)
    np.testing.assert_array_equal(gptq(weight, moments * np.float32(factor), scale, *ENDS), wanted)


def test_codes_stay_within_their_ends_and_arguments_as_they_were():
    rng = np.random.default_rng(0)
    weight, scale = random_weight(rng, 16, 64)
    x = correlated_inputs(rng, 64)
    given = weight, x.T @ x, scale / 4
    copies = [array.copy() for array in given]
    found = gptq(*given, -9, 8)
    assert found.dtype == np.int8
    assert found.shape == weight.shape
    assert (found.min(), found.max()) == (-9, 8)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_what_cannot_be_is_refused():
    weight, scale, moments = np.ones((2, 3), np.float32), np.ones(2, np.float32), np.eye(3)
    with pytest.raises(ValueError, match=r"expected moments \[3, 3\] and a scale \[2\].* found \[4, 4\] and \[2\]"):
        gptq(weight, np.eye(4), scale, *ENDS)
    with pytest.raises(ValueError, match="expected finite numbers in moments"):
        gptq(weight, moments * np.nan, scale, *ENDS)
    with pytest.raises(ValueError, match="expected finite numbers in weight"):
        gptq(weight * np.float32(np.inf), moments, scale, *ENDS)
    for wrong in (-moments, np.diag([1.0, 1.0, -1.0]), np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1.0]])):
        with pytest.raises(ValueError, match="not positive semidefinite"):
            gptq(weight, wrong, scale, *ENDS)
