"""Eq. 1 to 3, for whatever ranges, weights and bits."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nextscale.graph_passes.qparams import (
    PAIR_LIMIT,
    WEIGHT_QMAX,
    ActivationQParams,
    QuantizedWeight,
    Range,
    RangeRule,
    WeightQParams,
    largest_pair_sum,
)

# Beyond these the arithmetic of float32 itself ends: a range's width, or a step of it, is no normal number.
LARGE, SMALL = 2.0**100, 2.0**-100
numbers = st.floats(-LARGE, LARGE, width=32)
normal = numbers.filter(lambda x: x == 0 or abs(x) > SMALL)
# x / scale and the product back are rounded once each, of at most 256 steps.
SLACK = 256 * 2**-23


def range_of(*values: float) -> Range:
    return Range(np.array([min(values)], np.float32), np.array([max(values)], np.float32))


@given(numbers, numbers)
def test_zero_is_exact(a: float, b: float) -> None:
    qparams = ActivationQParams.from_range(range_of(a, b))
    assert qparams.dequantize(qparams.quantize(np.zeros(1, np.float32))) == 0


@given(normal, normal, st.floats(0, 1))
def test_what_lies_in_the_range_moves_by_at_most_half_a_step(a: float, b: float, share: float) -> None:
    observed = range_of(a, b)
    qparams = ActivationQParams.from_range(observed)
    x = (1 - share) * observed.minimum + share * observed.maximum
    error = np.abs(qparams.dequantize(qparams.quantize(x)).astype(np.float64) - x)
    assert error <= (0.5 + SLACK) * qparams.scale[0]


@given(normal, normal)
def test_the_scale_spreads_255_steps_over_the_range_and_zero(a: float, b: float) -> None:
    """Eq. 2 and 3."""
    qparams = ActivationQParams.from_range(range_of(a, b))
    low, high = min(a, b, 0), max(a, b, 0)
    assert qparams.scale.dtype == np.float32
    assert qparams.zero_point.dtype == np.uint8
    assert qparams.scale[0] == pytest.approx((high - low) / 255 or 1, rel=2**-22)
    assert abs(float(qparams.zero_point[0]) + low / float(qparams.scale[0])) <= 0.5 + SLACK


@given(numbers, numbers, st.lists(numbers, min_size=2, max_size=20))
def test_codes_never_change_the_order(a: float, b: float, values: list[float]) -> None:
    qparams = ActivationQParams.from_range(range_of(a, b))
    codes = qparams.quantize(np.sort(np.array(values, np.float32))).astype(int)
    assert (np.diff(codes) >= 0).all()


@given(numbers, numbers)
def test_codes_are_fixed_points(a: float, b: float) -> None:
    qparams = ActivationQParams.from_range(range_of(a, b))
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(qparams.quantize(qparams.dequantize(codes)), codes)


def test_values_outside_the_range_are_clipped() -> None:
    qparams = ActivationQParams.from_range(range_of(-1, 1))
    assert qparams.quantize(np.array([-100, 100], np.float32)).tolist() == [0, 255]


def test_each_stage_has_its_own_parameters() -> None:
    qparams = ActivationQParams.from_range(Range(np.float32([0, -1, -1]), np.float32([255, 0, 3])))
    np.testing.assert_allclose(qparams.scale, [1, 1 / 255, 4 / 255], rtol=2**-22)
    assert qparams.zero_point.tolist() == [0, 255, 64]


@pytest.mark.parametrize("nothing", [0, 1e-45, -1e-38], ids=str)
def test_a_range_of_nothing_becomes_zero(nothing: float) -> None:
    """So do values whose step would be no normal number."""
    qparams = ActivationQParams.from_range(range_of(0, nothing))
    assert qparams.scale[0] == 1
    assert qparams.dequantize(qparams.quantize(np.float32([nothing]))) == 0


@given(numbers, numbers, numbers, numbers)
def test_merging_ranges_holds_both(a: float, b: float, c: float, d: float) -> None:
    merged = range_of(a, b).merge(range_of(c, d))
    assert merged.minimum == np.float32(min(a, b, c, d))
    assert merged.maximum == np.float32(max(a, b, c, d))


@st.composite
def weights(draw: st.DrawFn, largest: float = LARGE) -> tuple[np.ndarray, int]:
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=4))
    weight = draw(arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32)))
    return weight, draw(st.integers(-len(shape), len(shape) - 1))


@given(weights())
def test_weights_move_by_at_most_half_a_step_of_their_channel(drawn: tuple[np.ndarray, int]) -> None:
    weight, axis = drawn
    quantized = QuantizedWeight.per_channel(weight, axis)
    assert quantized.codes.dtype == np.int8
    assert quantized.scale.dtype == np.float32
    assert quantized.scale.shape == (weight.shape[axis],)
    assert (quantized.scale > 0).all()
    assert quantized.codes.min() >= -WEIGHT_QMAX
    codes, channels = (np.moveaxis(array, axis, -1).astype(np.float64) for array in (quantized.codes, weight))
    tiny = np.finfo(np.float32).tiny * WEIGHT_QMAX  # what a scale cannot tell from zero
    assert (np.abs(codes * quantized.scale - channels) <= (0.5 + SLACK) * quantized.scale + tiny).all()


@given(weights())
def test_the_largest_weight_of_a_channel_takes_the_last_code(drawn: tuple[np.ndarray, int]) -> None:
    weight, axis = drawn
    quantized = QuantizedWeight.per_channel(weight, axis)
    for codes, channel in zip(*(np.moveaxis(array, axis, 0) for array in (quantized.codes, weight)), strict=True):
        if np.abs(channel).max() > SMALL:
            assert np.abs(codes.astype(int)).max() == WEIGHT_QMAX


@given(weights())
def test_negated_weights_have_negated_codes(drawn: tuple[np.ndarray, int]) -> None:
    weight, axis = drawn
    quantized, negated = (QuantizedWeight.per_channel(w, axis) for w in (weight, -weight))
    np.testing.assert_array_equal(negated.codes, -quantized.codes)
    np.testing.assert_array_equal(negated.scale, quantized.scale)


@pytest.mark.parametrize("nothing", [0, 1e-45, 1e-38], ids=str)
def test_a_channel_of_nothing_becomes_zero(nothing: float) -> None:
    """So do magnitudes whose step would be no normal number."""
    quantized = QuantizedWeight.per_channel(np.float32([[nothing, 2], [0, 1]]), axis=1)
    assert quantized.codes.tolist() == [[0, 127], [0, 64]]
    assert quantized.scale[0] == 1


# Fewer bits

fewer_bits = st.integers(2, 7)
all_bits = pytest.mark.parametrize("bits", range(2, 9))
RULES: tuple[RangeRule, ...] = get_args(RangeRule)


@given(normal, normal, st.floats(0, 1), fewer_bits)
def test_activations_of_fewer_bits_move_by_at_most_half_a_step(a: float, b: float, share: float, bits: int) -> None:
    observed = range_of(a, b)
    qparams = ActivationQParams.from_range(observed, bits)
    x = (1 - share) * observed.minimum + share * observed.maximum
    codes = qparams.quantize(x)
    assert codes <= 2**bits - 1
    assert np.abs(qparams.dequantize(codes).astype(np.float64) - x) <= (0.5 + SLACK) * qparams.scale[0]


@all_bits
def test_the_ends_of_an_activations_range_take_the_last_codes(bits: int) -> None:
    qparams = ActivationQParams.from_range(range_of(-1, 2), bits)
    assert qparams.qmax == 2**bits - 1
    assert qparams.scale[0] == pytest.approx(3 / (2**bits - 1), rel=2**-22)
    assert qparams.quantize(np.float32([-100, -1, 0, 2, 100])).tolist() == [
        0,
        0,
        qparams.zero_point[0],
        2**bits - 1,
        2**bits - 1,
    ]


@given(numbers, numbers, fewer_bits)
def test_zero_is_exact_in_fewer_bits(a: float, b: float, bits: int) -> None:
    qparams = ActivationQParams.from_range(range_of(a, b), bits)
    assert qparams.dequantize(qparams.quantize(np.zeros(1, np.float32))) == 0


@given(weights(), fewer_bits)
def test_weights_of_fewer_bits_move_by_at_most_half_a_step(drawn: tuple[np.ndarray, int], bits: int) -> None:
    """With the range of each channel, widened to hold zero, in 2^bits - 1 steps; zero is code 0."""
    weight, axis = drawn
    quantized = QuantizedWeight.per_channel(weight, axis, bits)
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    codes = np.moveaxis(quantized.codes, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    tiny = np.finfo(np.float32).tiny * 2**bits  # what a scale cannot tell from zero
    assert (
        np.abs(codes * quantized.scale[:, None] - channels) <= (0.5 + SLACK) * quantized.scale[:, None] + tiny
    ).all()
    assert (codes >= quantized.qmin[:, None]).all()
    assert (codes <= quantized.qmin[:, None].astype(int) + 2**bits - 1).all()
    assert (codes[channels == 0] == 0).all()
    span = np.maximum(channels.max(axis=1), 0) - np.minimum(channels.min(axis=1), 0)
    normal_steps = span / (2**bits - 1) > SMALL
    np.testing.assert_allclose(quantized.scale[normal_steps] * (2**bits - 1), span[normal_steps], rtol=2**-22)


def random_channels(seed: int = 0) -> np.ndarray:
    """Heavy tails, as a percentile or least squares cuts them off; [512, 6], channels last, one of them positive."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, (512, 6)).astype(np.float32)
    weight[:, 5] = np.abs(weight[:, 5]) + 1
    return weight


def squared_errors(weight: np.ndarray, bits: int, rule: RangeRule) -> np.ndarray:
    quantized = QuantizedWeight.per_channel(weight, 1, bits, rule)
    error = quantized.codes.astype(np.float64) * quantized.scale - weight
    result: np.ndarray = (error * error).sum(axis=0)
    return result


@all_bits
@pytest.mark.parametrize("rule", RULES)
def test_codes_stay_within_their_ends(rule: RangeRule, bits: int) -> None:
    weight = random_channels()
    qparams = WeightQParams.choose(weight, 1, bits, rule)
    codes = qparams.quantize(weight, 1)
    assert codes.dtype == qparams.qmin.dtype == qparams.qmax.dtype == np.int8
    steps = 254 if bits == 8 else 2**bits - 1
    assert (qparams.qmax.astype(int) - qparams.qmin == steps).all()
    assert (codes >= qparams.qmin).all()
    assert (codes <= qparams.qmax).all()
    assert (qparams.qmin <= 0).all()
    assert (qparams.qmax >= 0).all()
    quantized = QuantizedWeight.per_channel(weight, 1, bits, rule)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_array_equal(quantized.qmin, qparams.qmin)


@all_bits
@pytest.mark.parametrize("rule", RULES)
def test_what_lies_in_a_rules_range_moves_by_at_most_half_a_step(rule: RangeRule, bits: int) -> None:
    """What lies outside takes the nearer end."""
    weight = random_channels()
    qparams = WeightQParams.choose(weight, 1, bits, rule)
    low, high = (end.astype(np.float64) * qparams.scale for end in (qparams.qmin, qparams.qmax))
    values = qparams.quantize(weight, 1).astype(np.float64) * qparams.scale
    assert (np.abs(values - np.clip(weight, low, high)) <= (0.5 + SLACK) * qparams.scale).all()
    assert (values[weight > high] == np.broadcast_to(high, weight.shape)[weight > high]).all()
    assert (values[weight < low] == np.broadcast_to(low, weight.shape)[weight < low]).all()


@all_bits
def test_least_squares_is_never_worse_than_the_whole_range(bits: int) -> None:
    for seed in range(5):
        print("seed", seed)
        weight = random_channels(seed)
        whole, least = (squared_errors(weight, bits, rule) for rule in ("max", "mse"))
        # Errors are compared as sums of 512 squares in float32.
        assert (least <= whole * (1 + 512 * 2**-24)).all()
        if bits <= 4:  # heavy tails are worth cutting off
            assert least.sum() < 0.9 * whole.sum()


@pytest.mark.parametrize("bits", [8, 4])
def test_least_squares_chooses_the_best_of_its_factors(bits: int) -> None:
    weight = random_channels(1)
    low, high = np.minimum(weight.min(axis=0), 0), np.maximum(weight.max(axis=0), 0)
    errors = []
    for factor in np.float32(np.arange(100, 39, -1) / 100):
        qparams = WeightQParams.from_range(low * factor, high * factor, bits)
        errors.append((((qparams.quantize(weight, 1) * qparams.scale).astype(np.float64) - weight) ** 2).sum(axis=0))
    np.testing.assert_allclose(squared_errors(weight, bits, "mse"), np.min(errors, axis=0), rtol=512 * 2**-24)


@pytest.mark.parametrize("bits", [6, 4])
def test_percentiles_are_those_of_the_paper(bits: int) -> None:
    """Sec. 4.1: 0.1% and 99.9% of each channel's weights, linearly interpolated."""
    weight = np.linspace(-1, 3, 1001, dtype=np.float32)[:, None]
    weight[0], weight[-1] = -50, 70
    qparams = WeightQParams.choose(weight, 1, bits, "percentile")
    # Of 1001 values the second and the last but one.
    assert qparams.scale[0] * (2**bits - 1) == pytest.approx(float(weight[-2, 0] - weight[1, 0]), rel=1e-6)
    assert squared_errors(weight, bits, "percentile") > 49**2 + 67**2 - 400  # two weights are given up


@all_bits
@pytest.mark.parametrize("rule", RULES)
def test_rules_work_on_each_channel_alone(rule: RangeRule, bits: int) -> None:
    weight = random_channels()
    whole = QuantizedWeight.per_channel(weight, 1, bits, rule)
    for i in range(weight.shape[1]):
        alone = QuantizedWeight.per_channel(weight[:, i : i + 1], 1, bits, rule)
        np.testing.assert_array_equal(alone.codes[:, 0], whole.codes[:, i])
        assert alone.scale[0] == whole.scale[i]


@pytest.mark.parametrize("rule", RULES)
def test_a_channel_of_nothing_becomes_zero_in_four_bits(rule: RangeRule) -> None:
    quantized = QuantizedWeight.per_channel(np.zeros((16, 2), np.float32), 1, 4, rule)
    assert not quantized.codes.any()
    assert (quantized.scale == 1).all()


def test_four_bits_by_hand() -> None:
    """Range -1 to 2 in 15 steps of 0.2: zero point 5, codes -5 to 10."""
    quantized = QuantizedWeight.per_channel(np.float32([[-1], [-0.31], [0], [0.09], [2]]), 1, 4)
    assert quantized.codes[:, 0].tolist() == [-5, -2, 0, 0, 10]
    assert quantized.qmin.tolist() == [-5]
    assert quantized.scale[0] == np.float32(0.2)


# Within 16 bits a pair


def test_the_largest_pair_is_of_neighbours_of_one_sign() -> None:
    rows = np.array([[1, 2, 3, -4], [-5, -6, 100, -100], [0, 0, 0, 0], [9, -9, -1, -1]])
    assert largest_pair_sum(rows).tolist() == [4, 100, 0, 9]
    assert largest_pair_sum(np.array([[1, 1, -7]])).tolist() == [7]


@given(weights(1000), st.integers(2, 8), st.integers(2, 8), st.sampled_from(RULES))
def test_no_codes_of_activations_take_a_pair_of_a_reduced_range_beyond_16_bits(
    drawn: tuple[np.ndarray, int], bits: int, activation_bits: int, rule: RangeRule
) -> None:
    weight, axis = drawn
    quantized = QuantizedWeight.reduced_range(weight, axis, bits, rule, activation_bits)
    rows = np.moveaxis(quantized.codes, axis, 0).reshape(weight.shape[axis], -1).astype(int)
    assert ((2**activation_bits - 1) * largest_pair_sum(rows) <= PAIR_LIMIT).all()
    assert (rows >= quantized.qmin[:, None]).all()


@given(weights(1000), st.integers(2, 8), st.sampled_from(RULES))
def test_a_reduced_range_has_steps_of_at_most_twice_the_size(
    drawn: tuple[np.ndarray, int], bits: int, rule: RangeRule
) -> None:
    weight, axis = drawn
    full = QuantizedWeight.per_channel(weight, axis, bits, rule)
    reduced = QuantizedWeight.reduced_range(weight, axis, bits, rule, 8)
    assert (reduced.scale >= full.scale).all()
    assert (reduced.scale <= (2 + SLACK) * full.scale).all()
    if bits < 7:  # nothing to reduce
        np.testing.assert_array_equal(reduced.codes, full.codes)


def test_a_reduced_range_rounds_to_nearest() -> None:
    """In steps that the pair with the largest sum asks for: 120 + 80 of 127 here."""
    weight = np.float32([[120, 80, -10, 127, 5]])
    quantized = QuantizedWeight.reduced_range(weight, 0, 8, "max", 8)
    assert quantized.scale == pytest.approx([200 / 127], rel=SLACK)
    assert quantized.codes.tolist() == [[76, 51, -6, 81, 3]]
    np.testing.assert_array_equal(QuantizedWeight.reduced_range(weight, 0, 8, "max", 7).codes, weight.astype(np.int8))
