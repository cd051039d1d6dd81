"""Shift-and-sum in the graph: both forms give the same bits, the oracle's, for all orders, places and stages."""

from __future__ import annotations

import attention_oracle as oracle
import numpy as np
import pytest
from numpy.typing import NDArray

from nextscale.graph_passes.expand_attentive_tokens import LARGEST_ORDER, ShiftAndSum
from nextscale.graph_passes.quantize_attention import AttentionWeights, Magnitudes, quantize_attention

from .attention_model import (
    PLACES,
    ROWS,
    STAGE,
    THETA,
    WEIGHTS,
    Attention,
    Form,
    Operands,
    Outcome,
    assert_like_oracle,
    attention_model,
    integer_attention,
    shift_and_sum,
)

KEYS = 14
LARGEST_SHIFT = LARGEST_ORDER.bit_length()  # 2n = 2^m = 128
BOTH: tuple[Form, Form] = ("residual", "duplicate")
# bits, theta, places
CASES = {
    "some attentive, places too few": (8, THETA, PLACES),
    "nearly all attentive, the largest orders": (8, 2.0**-12, (3, 64)),
    "nearly all attentive, places too few": (6, 0.002, (0, 5)),
    "theta 0": (4, 0.0, (1, 7)),
    "few attentive": (3, 0.12, (2, 4)),
    "none attentive": (8, 1.0, (1, 2)),
    "two bits": (2, 0.02, (2, 8)),
}
cases = pytest.mark.parametrize(("bits", "theta", "places"), CASES.values(), ids=CASES.keys())


def scores_of(outcome: Outcome) -> NDArray[np.float32]:
    """Eq. 11, [R, H, T]."""
    score: NDArray[np.float32] = outcome.weights.mean(axis=2, dtype=np.float32)
    return score


def attentive(outcome: Outcome, theta: float) -> NDArray[np.int64]:
    """How many tokens of each row and head are attentive: [R, H]."""
    counts: NDArray[np.int64] = (scores_of(outcome) > np.float32(theta)).sum(axis=-1)
    return counts


@pytest.mark.exact_products
@cases
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_forms_are_equal_bit_for_bit(
    weights: AttentionWeights, bits: int, theta: float, places: tuple[int, ...]
) -> None:
    for seed in range(4):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        operands = Operands.random(rng, keys=KEYS, peak=10.0 ** rng.uniform(-1, 1.2))
        residual, duplicate = (integer_attention(weights, bits, form, theta, places)(operands) for form in BOTH)
        assert np.array_equal(residual.y, duplicate.y)
        assert residual.overflow == duplicate.overflow
        assert_like_oracle(residual, operands, weights, bits, shift_and_sum("residual", theta, places))


@cases
def test_the_overflow_is_numpys_count(bits: int, theta: float, places: tuple[int, ...]) -> None:
    for stage in range(len(places)):
        operands = Operands.random(np.random.default_rng(stage), keys=KEYS)
        for form in BOTH:
            outcome = integer_attention("row", bits, form, theta, places)(operands, stage)
            assert outcome.overflow == np.maximum(attentive(outcome, theta) - places[stage], 0).sum()


def test_the_cases_are_what_they_are_called() -> None:
    operands = Operands.random(np.random.default_rng(0), keys=KEYS)
    for name, (bits, theta, places) in CASES.items():
        outcome = integer_attention("row", bits, "residual", theta, places)(operands)
        counts = attentive(outcome, theta)
        assert ("nearly all" in name or name == "theta 0") == (counts >= KEYS - 4).all()
        assert (name == "none attentive") == (counts == 0).all()
        if "too few" in name:
            assert outcome.overflow > 0
        m = oracle.orders(scores_of(outcome), theta, places[STAGE])
        if name in ("nearly all attentive, the largest orders", "theta 0"):
            assert m.max() == LARGEST_SHIFT
        if name == "some attentive, places too few":
            assert {0, 1, 2, 3} <= set(m.ravel().tolist())


@pytest.mark.exact_products
@pytest.mark.parametrize("weights", WEIGHTS)
def test_enough_places_leave_no_overflow(weights: AttentionWeights) -> None:
    """More places than tokens are as many as tokens."""
    operands = Operands.random(np.random.default_rng(1), keys=5)
    for form in BOTH:
        outcome = integer_attention(weights, 8, form)(operands)
        assert PLACES[STAGE] > 5
        assert attentive(outcome, THETA).sum() > 0
        assert outcome.overflow == 0
        assert_like_oracle(outcome, operands, weights, 8, shift_and_sum(form))


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_places_at_all(weights: AttentionWeights, form: Form) -> None:
    """All attentive tokens overflow, and V is rounded half up."""
    theta, places = 0.002, (0, 5)
    operands = Operands.random(np.random.default_rng(2))
    outcome = integer_attention(weights, 6, form, theta, places)(operands, stage=0)
    assert outcome.overflow == attentive(outcome, theta).sum() > 0
    assert_like_oracle(outcome, operands, weights, 6, shift_and_sum(form, theta, places), stage=0)


def test_each_stage_has_its_places() -> None:
    operands = Operands.random(np.random.default_rng(3))
    run = integer_attention("log2", 8, "residual")
    outcomes = [run(operands, stage) for stage in range(2)]
    assert outcomes[0].overflow > outcomes[1].overflow > 0
    assert not np.array_equal(outcomes[0].y, outcomes[1].y)
    for stage, outcome in enumerate(outcomes):
        assert_like_oracle(outcome, operands, "log2", 8, shift_and_sum("residual"), stage)


@pytest.mark.parametrize("form", BOTH)
def test_a_graph_of_one_stage_needs_no_stage_input(form: Form) -> None:
    operands = Operands.random(np.random.default_rng(4))
    one_stage = ShiftAndSum(form, THETA, PLACES[STAGE:], count_overflow=True)
    outcome = Attention(quantize_attention(attention_model(), "row", 8, ROWS, None, one_stage))(operands)
    expected = integer_attention("row", 8, form)(operands, STAGE)
    np.testing.assert_array_equal(outcome.y, expected.y)
    assert outcome.overflow == expected.overflow


@pytest.mark.exact_products
@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_first_stage_has_one_token_of_score_1(weights: AttentionWeights, bits: int, form: Form) -> None:
    """Its output is its value, and so Theorem 1 is seen from outside: it is off by s / 4n at most."""
    operands = Operands.random(np.random.default_rng(5), queries=1, keys=1, width=64)
    outcome = integer_attention(weights, bits, form)(operands, stage=0)
    np.testing.assert_array_equal(outcome.weights, np.ones_like(outcome.weights))
    assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form), stage=0)
    m = 6  # ceil(log2(1 / 0.03))
    scale = oracle.scale_of(oracle.image_magnitude(operands.v, ROWS), bits).astype(np.float64)
    # Half a step of the grid, and the rounding of v / s + z and of the output: a few 2^-24 of 2^bits steps.
    slack = 2**-16 + 2**bits * 2**-22
    error = np.abs(outcome.y - operands.v) / scale
    # Values above M - z are clipped to the last code: half a step at most, whatever the order.
    inside = operands.v / scale <= 2 ** (bits - 1) - 1
    assert error[inside].max() <= 2.0 ** -(m + 1) + slack
    assert error[inside].max() > 0.9 * 2.0 ** -(m + 1)


@pytest.mark.exact_products
@pytest.mark.parametrize("weights", WEIGHTS)
def test_of_equal_scores_the_first_tokens_win(weights: AttentionWeights) -> None:
    """16 tokens of 1/16 each, exactly."""
    operands = Operands.random(np.random.default_rng(6), keys=16, peak=0)
    outcomes = [integer_attention(weights, 8, form)(operands) for form in BOTH]
    np.testing.assert_array_equal(scores_of(outcomes[0]), np.full_like(scores_of(outcomes[0]), 1 / 16))
    assert np.array_equal(outcomes[0].y, outcomes[1].y)
    assert outcomes[0].overflow == operands.q.shape[0] * operands.q.shape[1] * (16 - PLACES[STAGE])
    assert_like_oracle(outcomes[0], operands, weights, 8, shift_and_sum("residual"))


@pytest.mark.exact_products
def test_a_score_of_theta_is_not_attentive() -> None:
    """Eq. 12 is strict; and m counts the powers strictly below: 2 theta has order 1, not 2."""
    operands = Operands.random(np.random.default_rng(7), keys=16, peak=0)
    counts = {}
    for theta in (1 / 16, 1 / 32):
        outcome = integer_attention("row", 8, "residual", theta, (2, 6))(operands)
        counts[theta] = outcome.overflow
        assert_like_oracle(outcome, operands, "row", 8, shift_and_sum("residual", theta))
    assert counts[1 / 16] == 0
    assert counts[1 / 32] > 0
    m = oracle.orders(np.full((1, 1, 16), 1 / 16, np.float32), 1 / 32, 16)
    assert (m == 1).all()


@pytest.mark.exact_products
@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_values_far_outside_a_static_range(weights: AttentionWeights, bits: int) -> None:
    """Shifted copies are clipped one by one, at both ends of the codes and beyond."""
    known = Magnitudes(8, 4, 0.5)
    operands = Operands.random(np.random.default_rng(8))
    operands.v[..., 0] = np.linspace(-0.6, 0.6, KEYS, dtype=np.float32)  # around both ends
    operands.v[..., 1] *= 1e6
    residual, duplicate = (integer_attention(weights, bits, form, magnitudes=known)(operands) for form in BOTH)
    assert np.array_equal(residual.y, duplicate.y)
    assert_like_oracle(residual, operands, weights, bits, shift_and_sum("residual"), magnitude=known.value)


@pytest.mark.parametrize("weights", ["log2", "log2-row"])
def test_the_smallest_weights_of_attentive_tokens_are_divided_too(weights: AttentionWeights) -> None:
    """Of tokens that one query attends to and others do not at all: no code is clipped."""
    rng = np.random.default_rng(9)
    operands = Operands.random(rng, peak=25)
    residual, duplicate = (integer_attention(weights, 4, form)(operands) for form in BOTH)
    assert np.array_equal(residual.y, duplicate.y)
    score = scores_of(residual)
    m = oracle.orders(score, THETA, PLACES[STAGE])
    tops = np.broadcast_to(oracle.image_magnitude(residual.weights, ROWS), (*residual.weights.shape[:3], 1))
    tops = tops if weights == "log2" else residual.weights.max(axis=-1, keepdims=True)
    assert ((residual.weights < tops * 2.0**-15) & (m[:, :, None] > 1)).any()
    assert_like_oracle(residual, operands, weights, 4, shift_and_sum("residual"))
