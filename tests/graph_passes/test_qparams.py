"""Eq. 1 to 3, for whatever ranges and weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nextscale.graph_passes.qparams import WEIGHT_QMAX, ActivationQParams, QuantizedWeight, Range

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
def weights(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=4))
    weight = draw(arrays(np.float32, shape, elements=st.floats(-LARGE, LARGE, width=32)))
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
