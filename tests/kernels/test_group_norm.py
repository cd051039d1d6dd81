"""GroupNorm and CodesGroupNorm against float64, on each instruction set; what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_oracle import codes_and_fine, group_norm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]
EPSILON = 1e-6
# Half a unit in the last place of 1. Float sums have at most 256 terms, whose roundings move a variance by at most 256
# of these and a mean by 256 of a deviation; the affine, SiLU and quantization have less than 20 more.
ROUNDING = 2.0**-24
ROUNDINGS = 256 + 20


class Case:
    """Random numbers, or codes with a scale of each channel, and what GroupNorm makes of them."""

    def __init__(
        self, seed: int, shape: tuple[int, int, int], groups: int, codes: bool, silu: bool, offset: bool, far: float = 1
    ) -> None:
        rng = np.random.default_rng(seed)
        channels = shape[2]
        self.groups, self.silu, self.codes = groups, silu, codes
        centre = rng.normal(0, far, channels)
        numbers = centre + rng.normal(size=shape) * rng.uniform(0.5, 2, channels)
        self.weight, self.bias = (rng.normal(size=channels).astype(np.float32) for _ in range(2))
        self.offset = rng.normal(0, far, channels).astype(np.float32) if offset else None
        self.input_scale = rng.uniform(0.01, 0.05, channels).astype(np.float32) if codes else None
        if codes:
            self.x: Array = np.clip(np.rint(numbers * 40 + 128), 0, 255).astype(np.uint8)
        else:
            self.x = numbers.astype(np.float32)
        self.scale, self.zero_point = np.array(0.03, np.float32), np.array(100, np.uint8)

    def numbers(self, x: Array) -> Array:
        numbers = x.astype(np.float64)
        if self.input_scale is not None:
            numbers = numbers * self.input_scale
        return numbers if self.offset is None else numbers + self.offset

    def exact(self, x: Array) -> Array:
        return group_norm(self.numbers(x), self.weight, self.bias, self.groups, EPSILON, self.silu)

    def bound(self, x: Array) -> Array:
        """Of the float result's error: SiLU's slope is at most 1.1."""
        numbers = self.numbers(x)
        parts = numbers.reshape(*x.shape[:2], self.groups, x.shape[2] // self.groups)
        deviation = np.repeat(np.sqrt(parts.var((1, 3)) + EPSILON), x.shape[2] // self.groups, axis=1)[:, None]
        mean = np.repeat(parts.mean((1, 3)), x.shape[2] // self.groups, axis=1)[:, None]
        size = np.abs(numbers) + np.abs(mean) + deviation
        if self.offset is not None:
            size = size + 2 * np.abs(self.offset)
        return 1.1 * ROUNDINGS * ROUNDING * (np.abs(self.weight) * size / deviation + np.abs(self.bias))

    def operator(
        self, library: Path, isa: str = "", threads: int = 1, to_codes: bool = True, fine: bool = False
    ) -> Operator:
        inputs = {"x": self.x}
        if self.codes:
            inputs["input_scale"] = self.input_scale
        inputs |= {"input_offset": self.offset, "weight": self.weight, "bias": self.bias}
        if to_codes:
            inputs |= {"scale": self.scale, "zero_point": self.zero_point}
        return Operator(
            library,
            "CodesGroupNorm" if self.codes else "GroupNorm",
            inputs,
            ["codes" if to_codes else "", "" if to_codes else "y", "fine" if fine else ""],
            isa=isa,
            threads=threads,
            groups=self.groups,
            epsilon=EPSILON,
            silu=int(self.silu),
            fine=int(fine),
        )

    def check(self, library: Path, isa: str = "") -> None:
        exact, bound = self.exact(self.x), self.bound(self.x)
        (y,) = self.operator(library, isa, to_codes=False)()
        assert y.dtype == np.float32
        assert np.all(np.abs(y - exact) <= bound)
        (codes,) = self.operator(library, isa)()
        in_codes = np.clip(exact / self.scale + self.zero_point, 0, 255)
        assert codes.dtype == np.uint8
        assert np.all(np.abs(codes - in_codes) <= 0.5 + bound / self.scale)
        self.scale = np.random.default_rng(0).uniform(0.01, 0.05, self.x.shape[2]).astype(np.float32)
        (of_channels,) = self.operator(library, isa)()
        np.testing.assert_array_equal(of_channels, codes_and_fine(y, self.scale, self.zero_point)[0])
        self.scale = np.array(0.03, np.float32)
        with_fine = self.operator(library, isa, fine=True)()
        for found, of_floats in zip(with_fine, codes_and_fine(y, self.scale, self.zero_point), strict=True):
            np.testing.assert_array_equal(found, of_floats)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1, 1, 1), 1),
        ((2, 3, 8), 4),
        ((1, 17, 33), 3),
        ((2, 300, 64), 32),
        ((1, 520, 160), 32),
        ((1, 1030, 44), 11),
        ((0, 4, 8), 2),
    ],
)
def test_close_to_float64(
    ops_library: Path, isa: str, shape: tuple[int, int, int], groups: int, codes: bool, silu: bool
) -> None:
    Case(sum(shape), shape, groups, codes, silu, offset=bool(shape[0] % 2)).check(ops_library, isa)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    pixels=st.integers(1, 700),
    groups=st.integers(1, 8),
    size=st.integers(1, 9),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    ops_library: Path, batch: int, pixels: int, groups: int, size: int, flags: tuple[bool, bool, bool], seed: int
) -> None:
    Case(seed, (batch, pixels, groups * size), groups, *flags).check(ops_library)


@pytest.mark.parametrize("codes", [False, True])
def test_same_bits_everywhere(ops_library: Path, isa: str, codes: bool) -> None:
    """On each instruction set, for any number of threads and of pictures."""
    case = Case(5, (3, 1100, 72), 8, codes, silu=True, offset=True)
    for to_codes, fine in ((False, False), (True, False), (True, True)):
        expected = case.operator(ops_library, "portable", 1, to_codes, fine)()
        for threads in (1, 2, 3):
            run = case.operator(ops_library, isa, threads, to_codes, fine)
            for wanted, all_of_them, one in zip(expected, run(), run(x=case.x[1:2]), strict=True):
                np.testing.assert_array_equal(all_of_them, wanted)
                np.testing.assert_array_equal(one, wanted[1:2])


def test_as_exact_as_stock_operators_where_the_mean_is_large(ops_library: Path) -> None:
    """Stock operators take a variance as the mean of squares less the mean's square, in float32."""
    case = Case(6, (1, 4096, 32), 8, codes=False, silu=False, offset=False, far=100)
    x = case.x[0]
    row = np.full((1, len(x)), 1 / len(x), np.float32)
    mean, square = row @ x, row @ (x * x)
    variance = np.maximum(square - mean * mean, 0).reshape(8, 4)
    means = mean.reshape(8, 4)
    middle = means.mean(1, keepdims=True)
    total = (variance + (means - middle) ** 2).mean(1, keepdims=True)
    factor = case.weight.reshape(8, 4) / np.sqrt(total + np.float32(EPSILON))
    shift = case.bias.reshape(8, 4) - middle * factor
    stock = x * factor.ravel() + shift.ravel()
    (found,) = case.operator(ops_library, to_codes=False)()
    exact = case.exact(case.x)
    assert np.abs(found - exact).max() <= np.abs(stock - exact[0]).max()


def test_a_channel_that_never_changes(ops_library: Path, isa: str) -> None:
    """A variance of nothing, where only epsilon is left to divide by."""
    case = Case(7, (1, 40, 8), 8, codes=False, silu=True, offset=False)
    case.x[..., 3] = 0.5
    case.check(ops_library, isa)


def test_shapes_that_do_not_fit_are_refused(ops_library: Path) -> None:
    case = Case(8, (1, 4, 8), 4, codes=True, silu=True, offset=True)
    run = case.operator(ops_library)
    for name, array, message in (
        ("x", np.zeros((1, 4, 9), np.uint8), "x has 9 channels, which are not 4 groups"),
        ("input_scale", np.ones(7, np.float32), r"input_scale has the shape \[7\], expected \[8\]"),
        ("input_offset", np.ones(7, np.float32), r"input_offset has the shape \[7\], expected \[8\]"),
        ("weight", np.ones(9, np.float32), r"weight has the shape \[9\], expected \[8\]"),
        ("bias", np.ones(1, np.float32), r"bias has the shape \[1\], expected \[8\]"),
        ("scale", np.array(0, np.float32), "the scale scale must be positive"),
        ("scale", np.array([*range(8)], np.float32), "the scale scale must be positive"),
        ("scale", np.ones(2, np.float32), r"scale has the shape \[2\], expected \[8\]"),
    ):
        with pytest.raises(Exception, match=r"nextscale\.CodesGroupNorm: .*" + message):
            run(**{name: array})


@pytest.mark.parametrize("codes", [False, True])
def test_fine_codes_without_codes_are_refused(ops_library: Path, codes: bool) -> None:
    case = Case(9, (1, 4, 8), 4, codes, silu=True, offset=True)
    with pytest.raises(Exception, match="fine is what codes leave over: the input scale is missing"):
        case.operator(ops_library, to_codes=False, fine=True)
    case.scale = np.ones(8, np.float32)
    with pytest.raises(Exception, match="fine is what codes in one scale leave over"):
        case.operator(ops_library, fine=True)()
