"""Each fake quantizer against the formulas of docs/quantization.md, written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import AttentionWeights
from nextscale.simulation._fake_quantizers import (
    ImageInput,
    StaticInput,
    TokenInput,
    fake_attention,
    fake_values,
    kernel_shifts,
)

CPU = torch.device("cpu")
LEVEL = torch.tensor([0, 1, 1, 1, 1])  # two stages
Floats = NDArray[np.float32]


def affine(x: Floats, low: float, high: float, bits: int) -> Floats:
    """Eq. 1 to 3."""
    qmax = 2**bits - 1
    low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
    scale = np.float32(high - low) / np.float32(qmax)
    zero_point = np.clip(np.round(-low / scale), 0, qmax)
    return ((np.clip(np.round(x / scale) + zero_point, 0, qmax) - zero_point) * scale).astype(np.float32)


def rows(seed: int, shape: tuple[int, ...] = (4, 5, 8)) -> Floats:
    return np.random.default_rng(seed).normal(0.3, 1, shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("paired", [True, False])
def test_image_input_shares_both_rows_and_all_tokens_of_a_stage(bits: int, paired: bool) -> None:
    x = rows(0)
    x[1] *= 9  # its image is row 3's, and no other's
    x[2] = np.abs(x[2])
    found = ImageInput(bits, 2)(torch.from_numpy(x), LEVEL, paired).numpy()
    for row in range(4):
        image = x[[row, (row + 2) % 4]] if paired else x[[row]]
        for stage in (slice(0, 1), slice(1, 5)):
            expected = affine(x[row, stage], image[:, stage].min(), image[:, stage].max(), bits)
            np.testing.assert_array_equal(found[row, stage], expected)


@pytest.mark.parametrize("stages", [1, 2])
def test_static_input_by_stage_or_not(stages: int) -> None:
    x = rows(1)
    low, high = np.array([-0.5, -1], np.float32)[:stages], np.array([1, 0.7], np.float32)[:stages]
    found = StaticInput(Range(low, high), 6, CPU)(torch.from_numpy(x), LEVEL, True).numpy()
    for token, si in enumerate(LEVEL.tolist()):
        np.testing.assert_array_equal(found[:, token], affine(x[:, token], low[si % stages], high[si % stages], 6))


@pytest.mark.parametrize("zero_point", [32, 8])
def test_token_input_has_a_fixed_zero_point_and_clips_nothing(zero_point: int) -> None:
    x = rows(2)
    x[0, 0] = 0
    found = TokenInput(6, zero_point)(torch.from_numpy(x), LEVEL, True).numpy()
    scale = np.maximum(
        x.max(-1, keepdims=True) / np.float32(63 - zero_point), -x.min(-1, keepdims=True) / np.float32(zero_point)
    )
    scale[scale == 0] = 1
    codes = np.round(x / scale) + zero_point
    assert codes.min() >= 0
    assert codes.max() <= 63
    np.testing.assert_array_equal(found, ((codes - zero_point) * scale).astype(np.float32))


def attention(seed: int) -> Floats:
    logits = np.random.default_rng(seed).normal(0, 3, (4, 2, 3, 6)).astype(np.float32)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights[0, 0, 0] = [1, 0, 0, 0, 0, 0]
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["log2", "log2-row", "row", "uniform"])
def test_attention_weights(kind: AttentionWeights, bits: int) -> None:
    weights, qmax = attention(3), 2**bits - 1
    found = fake_attention(torch.from_numpy(weights), kind, bits).numpy()
    if kind == "uniform":
        expected = np.round(weights * qmax) / qmax
    elif kind == "row":
        codes = np.round(weights * qmax / weights.max(-1, keepdims=True))
        expected = codes / codes.sum(-1, keepdims=True)
    else:
        image = np.maximum(weights, np.roll(weights, 2, 0)).max((1, 2, 3), keepdims=True)
        scale = image if kind == "log2" else weights.max(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            x = np.clip(np.round(-np.log2(weights / scale)), 0, qmax)
        powers = np.where(x - x.min(-1, keepdims=True) < 15, 2.0**-x, 0)
        assert (bits == 3) == powers.all()
        expected = scale * powers if kind == "log2" else powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=3e-7)  # two roundings of float32


def test_orders_follow_the_score_and_the_highest_win() -> None:
    """Eq. 11 and 14."""
    weights = torch.zeros(2, 1, 2, 5)
    weights[:, :, 0] = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    weights[:, :, 1] = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    shifts = kernel_shifts(weights, 0.1, 5)
    assert shifts[0, 0].tolist() == [3, 2, 1, 1, 0]  # 0.5 / 0.1 = 5 <= 2**3
    assert kernel_shifts(weights, 0.1, 3)[1, 0].tolist() == [3, 2, 1, 0, 0]  # the first among equals
    assert kernel_shifts(weights, 0.1, 0).max() == 0
    assert kernel_shifts(weights, 0.125, 5)[0, 0].tolist() == [2, 1, 0, 0, 0]  # above theta, not at it
    assert kernel_shifts(weights, 1e-6, 5)[0, 0].tolist() == [7, 7, 7, 7, 0]  # n is at most 64
    assert kernel_shifts(weights, 0.0, 5)[0, 0].tolist() == [7, 7, 7, 7, 0]


@given(
    bits=st.integers(2, 8),
    m=st.integers(1, 7),
    place=st.floats(0, 1),
    ends=st.sampled_from([None, -(2**15), -1, 0]),
)
def test_theorem_1_as_an_identity(bits: int, m: int, place: float, ends: int | None) -> None:
    """The sum of 2n shifted codes, Eq. 9 at t = s / 4n, is one rounding on a 2n times finer grid."""
    qmax, zero_point, n = 2**bits - 1, 2 ** (bits - 1), 2 ** (m - 1)
    grid = round((place * (qmax + 2) - 1) * 2**15) if ends is None else ends
    u = grid / 2**15
    shifted = u + (2 * np.arange(-n, n) + 1) / (4 * n)  # exact in float64
    summed = np.clip(np.floor(shifted + 0.5), 0, qmax).sum()
    assert summed == np.clip(np.floor(2 * n * u + 0.5), 0, 2 * n * qmax)
    value = torch.tensor(u - zero_point, dtype=torch.float32).view(1, 1, 1, 1)
    found = fake_values(value, torch.ones(1), bits, torch.full((1, 1, 1), float(m)))
    assert found.item() == summed / (2 * n) - zero_point
    if 0 <= u <= qmax:
        assert abs(found.item() + zero_point - u) <= 1 / (4 * n)  # Eq. 10


def test_a_token_that_is_not_attentive_is_rounded_half_up() -> None:
    values = torch.tensor([-1.5, 0.5, 1.5, 100.0]).view(1, 1, 1, 4)
    found = fake_values(values, torch.ones(1), 4, torch.zeros(1, 1, 1))
    assert found.flatten().tolist() == [-1.0, 1.0, 2.0, 7.0]


def test_gradients_pass_straight_through_but_not_where_a_static_range_clips() -> None:
    x = torch.from_numpy(rows(5)).requires_grad_()
    for quantizer in (ImageInput(4, 2), TokenInput(4, 8)):
        (gradient,) = torch.autograd.grad(quantizer(x, LEVEL, True).sum(), x)
        assert torch.equal(gradient, torch.ones_like(x))
    static = StaticInput(Range(np.array([-1], np.float32), np.array([1], np.float32)), 8, CPU)
    (gradient,) = torch.autograd.grad(static(x, LEVEL, True).sum(), x)
    inside = (x > -1) & (x < 1)
    assert torch.equal(gradient[inside], torch.ones_like(gradient[inside]))
    assert gradient[(x < -1.01) | (x > 1.01)].abs().max() == 0
