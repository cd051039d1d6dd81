"""Convolution against integers in NumPy, on each instruction set; what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_oracle import Kernel, convolution, float_convolution
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]
PARTS = ("weight", "scale", "bias")
FINE_INPUT = 14


def kernels_of(rng: np.random.Generator, channels: int, out: int, upsample: bool) -> list[Kernel]:
    """Whose results are spread over all codes and a little beyond."""
    count, size = (4, 2) if upsample else (1, 3)
    spread = 74 * 74 * size * np.sqrt(channels)  # the standard deviation of a sum of codes in random weights
    return [
        Kernel(
            rng.integers(-128, 128, (out, channels, size, size)).astype(np.int8),
            rng.uniform(60, 100, out).astype(np.float32) / np.float32(spread),
            rng.normal(0, spread, out).astype(np.int32),
        )
        for _ in range(count)
    ]


def residual_of(rng: np.random.Generator, expected: Array) -> Array:
    """For results of this shape, about as large as those of kernels_of."""
    return rng.normal(0, 80, expected.shape).astype(np.float32)


def operator(
    library: Path,
    isa: str,
    x: Array,
    zero_point: int,
    kernels: Sequence[Kernel],
    threads: int = 1,
    result: str = "codes",
    fine: Array | None = None,
    residual: Array | None = None,
    stride: int = 1,
) -> Operator:
    constants = {f"{part}{i}": getattr(kernel, part) for i, kernel in enumerate(kernels) for part in PARTS}
    inputs: dict[str, Array | None] = {"x": x, "x_zero_point": np.array(zero_point, np.uint8), **constants}
    inputs |= {f"left out {i}": None for i in range(len(inputs), FINE_INPUT)}
    return Operator(
        library,
        "Convolution",
        inputs | {"fine": fine, "residual": residual},
        ["codes"] if result == "codes" else ["", "y"],
        tuple(constants),
        isa=isa,
        threads=threads,
        upsample=int(len(kernels) == 4),
        result=result,
        stride=stride,
    )


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "out"),
    [
        (1, 1, 1, 1, 1),
        (2, 3, 17, 8, 3),
        (1, 5, 16, 33, 40),
        (1, 2, 33, 64, 32),
        (2, 4, 16, 160, 64),
        (0, 4, 4, 8, 8),
        (1, 0, 4, 8, 8),
        (1, 4, 0, 8, 8),
    ],
)
@pytest.mark.parametrize("zero_point", [0, 7, 255])
def test_integers_are_exact(
    ops_library: Path,
    isa: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    out: int,
    zero_point: int,
    upsample: bool,
) -> None:
    rng = np.random.default_rng(channels)
    x = rng.integers(0, 256, (batch, height, width, channels)).astype(np.uint8)
    kernels = kernels_of(rng, channels, out, upsample)
    (found,) = operator(ops_library, isa, x, zero_point, kernels)()
    np.testing.assert_array_equal(found, convolution(x, zero_point, kernels))


FORMS = [(False, 1), (True, 1), (False, 2)]  # upsample, stride


@pytest.mark.parametrize(("upsample", "stride"), FORMS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("with_fine", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels", "out"),
    [(1, 1, 1, 1, 1), (2, 3, 17, 8, 3), (1, 5, 16, 33, 40), (1, 2, 33, 160, 32), (1, 4, 2, 7, 49), (0, 4, 4, 8, 8)],
)
def test_floats_have_the_bits_of_the_contract(
    ops_library: Path,
    isa: str,
    batch: int,
    height: int,
    width: int,
    channels: int,
    out: int,
    with_fine: bool,
    with_residual: bool,
    upsample: bool,
    stride: int,
) -> None:
    rng = np.random.default_rng(channels)
    x, fine = rng.integers(0, 256, (2, batch, stride * height, stride * width, channels)).astype(np.uint8)
    kernels = kernels_of(rng, channels, out, upsample)
    given_fine = fine if with_fine else None
    expected = float_convolution(x, 7, kernels, given_fine, stride=stride)
    residual = residual_of(rng, expected) if with_residual else None
    (found,) = operator(
        ops_library, isa, x, 7, kernels, result="float", fine=given_fine, residual=residual, stride=stride
    )()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected if residual is None else expected + residual)


@pytest.mark.parametrize(("height", "width", "channels", "out"), [(2, 2, 1, 1), (6, 34, 33, 40), (4, 64, 160, 32)])
def test_codes_with_stride_two(ops_library: Path, isa: str, height: int, width: int, channels: int, out: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.integers(0, 256, (2, height, width, channels)).astype(np.uint8)
    kernels = kernels_of(rng, channels, out, upsample=False)
    (found,) = operator(ops_library, isa, x, 200, kernels, stride=2)()
    np.testing.assert_array_equal(found, convolution(x, 200, kernels, stride=2))


@pytest.mark.parametrize("stride", [1, 2])
def test_floats_are_near_the_product_of_two_bytes(ops_library: Path, isa: str, stride: int) -> None:
    """What x and fine stand for, in float64: an oracle that knows nothing of sums and zero points."""
    rng = np.random.default_rng(5)
    x, fine = rng.integers(0, 256, (2, 1, 6, 8, 20)).astype(np.uint8)
    (kernel,) = kernels_of(rng, 20, 5, upsample=False)
    border = (1, 1) if stride == 1 else (0, 1)
    numbers = np.pad((x - 9.0) + (fine - 64.0) / 128, ((0, 0), border, border, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(numbers, (3, 3), (1, 2))[:, ::stride, ::stride]
    exact = np.einsum("bhwcij,ocij->bhwo", windows, kernel.weight.astype(np.float64)) + kernel.bias / 128
    (found,) = operator(ops_library, isa, x, 9, [kernel], result="float", fine=fine, stride=stride)()
    np.testing.assert_allclose(found, exact * kernel.scale, rtol=0, atol=4 * np.spacing(np.abs(found).max()))


@pytest.mark.parametrize(("upsample", "stride"), [(False, 1), (False, 2), (True, 1)])
def test_weights_may_be_the_columns_of_a_product(ops_library: Path, isa: str, upsample: bool, stride: int) -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(0, 256, (1, 6, 18, 20)).astype(np.uint8)
    kernels = kernels_of(rng, 20, 35, upsample)
    columns = [
        Kernel(kernel.weight.transpose(2, 3, 1, 0).reshape(-1, 35).copy(), kernel.scale, kernel.bias)
        for kernel in kernels
    ]
    (found,) = operator(ops_library, isa, x, 9, columns, stride=stride)()
    np.testing.assert_array_equal(found, convolution(x, 9, kernels, stride))


def test_extreme_products_do_not_saturate(ops_library: Path, isa: str) -> None:
    """255 * -128 twice leaves 16 bits, where an instruction that adds two products there would be clipped."""
    x = np.full((1, 3, 18, 64), 255, np.uint8)
    weight = np.full((2, 64, 3, 3), -128, np.int8)
    weight[1] = 127
    largest = 9 * 64 * 255 * 128
    kernels = [Kernel(weight, np.full(2, 128 / largest, np.float32), np.array([largest, 0], np.int32))]
    (found,) = operator(ops_library, isa, x, 0, kernels)()
    expected = convolution(x, 0, kernels)
    assert expected[0, 1, 1].tolist() == [0, 127]
    np.testing.assert_array_equal(found, expected)
    (found,) = operator(ops_library, isa, x, 0, kernels, result="float", fine=x)()
    np.testing.assert_array_equal(found, float_convolution(x, 0, kernels, x))


def test_sums_beyond_a_quarter_of_int32(ops_library: Path, isa: str) -> None:
    """Winograd's are four times the result's, for which there is no room here."""
    channels = 1900
    x = np.full((1, 3, 3, channels), 255, np.uint8)
    largest = 9 * channels * 255 * 128
    assert 2**31 < 4 * largest < 2**33
    kernels = [
        Kernel(
            np.full((1, channels, 3, 3), -128, np.int8),
            np.full(1, 200 / largest, np.float32),
            np.array([largest], np.int32),
        )
    ]
    (found,) = operator(ops_library, isa, x, 0, kernels)()
    np.testing.assert_array_equal(found, convolution(x, 0, kernels))
    assert found[0, 1, 1, 0] == 0 < found[0, 0, 0, 0]
    (found,) = operator(ops_library, isa, x, 0, kernels, result="float", fine=x)()
    np.testing.assert_array_equal(found, float_convolution(x, 0, kernels, x))


@pytest.mark.parametrize("upsample", [False, True])
def test_chunks_of_a_large_picture_meet(ops_library: Path, isa: str, upsample: bool) -> None:
    """Lines longer than a chunk, more lines than a chunk has, several tasks; any number of threads; each of a batch."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (2, 3, 300, 100)).astype(np.uint8)
    kernels = kernels_of(rng, 100, 20, upsample)
    expected = convolution(x, 100, kernels)
    for threads in (1, 2, 3):
        run = operator(ops_library, isa, x, 100, kernels, threads)
        np.testing.assert_array_equal(run()[0], expected)
    np.testing.assert_array_equal(run(x=x[1:])[0], expected[1:])


@cache
def large_floats(width: int, upsample: bool, stride: int) -> tuple[Array, Array, list[Kernel], Array, Array]:
    """x, fine, kernels, residual and their result, once for all instruction sets."""
    rng = np.random.default_rng(4)
    x, fine = rng.integers(0, 256, (2, 2, 4 * stride, width, 100)).astype(np.uint8)
    kernels = kernels_of(rng, 100, 20, upsample)
    product = float_convolution(x, 100, kernels, fine, stride=stride)
    residual = residual_of(rng, product)
    return x, fine, kernels, residual, product + residual


@pytest.mark.parametrize(("upsample", "stride"), FORMS)
@pytest.mark.parametrize("width", [200, 300])
def test_chunks_of_large_float_results_meet(
    ops_library: Path, isa: str, width: int, upsample: bool, stride: int
) -> None:
    """At a width of 200, 512 pixels are an odd number of lines, which a chunk must not have with stride 2."""
    x, fine, kernels, residual, expected = large_floats(width, upsample, stride)
    for threads in (1, 2, 3):
        run = operator(ops_library, isa, x, 100, kernels, threads, "float", fine, residual, stride)
        np.testing.assert_array_equal(run()[0], expected)
    np.testing.assert_array_equal(run(x=x[1:], fine=fine[1:], residual=residual[1:])[0], expected[1:])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 40), st.integers(1, 70)),
    out=st.integers(1, 70),
    zero_point=st.integers(0, 255),
    form=st.sampled_from(FORMS),
    more=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    ops_library: Path,
    shape: tuple[int, int, int, int],
    out: int,
    zero_point: int,
    form: tuple[bool, int],
    more: tuple[bool, bool],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    upsample, stride = form
    batch, height, width, channels = shape
    x, fine = rng.integers(0, 256, (2, batch, stride * height, stride * width, channels)).astype(np.uint8)
    kernels = kernels_of(rng, channels, out, upsample)
    (found,) = operator(ops_library, "", x, zero_point, kernels, stride=stride)()
    expected = convolution(x, zero_point, kernels, stride)
    np.testing.assert_array_equal(found, expected)
    given_fine = fine if more[0] else None
    residual = residual_of(rng, expected) if more[1] else None
    (floats,) = operator(
        ops_library, "", x, zero_point, kernels, result="float", fine=given_fine, residual=residual, stride=stride
    )()
    np.testing.assert_array_equal(floats, float_convolution(x, zero_point, kernels, given_fine, residual, stride))


def simple(channels: int = 4, out: int = 2, size: int = 3, bias: int = 0) -> Kernel:
    return Kernel(np.ones((out, channels, size, size), np.int8), np.ones(out, np.float32), np.full(out, bias, np.int32))


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([simple(size=2)], r"the input weight has the shape \[2, 4, 2, 2\], expected \[\?, \?, 3, 3\] or 9 numbers"),
        (
            [Kernel(np.ones((35, 2), np.int8), simple().scale, simple().bias)],
            r"the input weight has the shape \[35, 2\], expected .* or 9 numbers for each channel in \[\?, \?\]",
        ),
        ([simple(size=3)] * 4, r"the input weight has the shape \[2, 4, 3, 3\], expected \[\?, \?, 2, 2\]"),
        ([*[simple(size=2)] * 3, simple(size=2, out=3)], r"kernels of the shapes \[2, 4, 2, 2\] and \[3, 4, 2, 2\]"),
        (
            [Kernel(simple().weight, np.ones(3, np.float32), simple().bias)],
            r"scale has the shape \[3\], expected \[2\]",
        ),
        ([Kernel(simple().weight, simple().scale, np.ones(1, np.int32))], r"bias has the shape \[1\], expected \[2\]"),
        ([simple(bias=2**31 - 255 * 36)], "the sum of output 0 could leave int32"),
        ([simple(bias=-(2**31))], "the sum of output 0 could leave int32"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(ops_library: Path, kernels: list[Kernel], message: str) -> None:
    with pytest.raises(Exception, match=r"nextscale\.Convolution: .*" + message):
        operator(ops_library, "", np.zeros((1, 2, 2, 4), np.uint8), 0, kernels)


def test_pictures_that_do_not_fit_are_refused(ops_library: Path) -> None:
    run = operator(ops_library, "", np.zeros((1, 2, 2, 4), np.uint8), 0, [simple()])
    with pytest.raises(Exception, match=r"the input x has the shape \[1, 2, 2, 5\], expected \[\?, \?, \?, 4\]"):
        run(x=np.zeros((1, 2, 2, 5), np.uint8))


def test_three_of_four_kernels_are_refused(ops_library: Path) -> None:
    constants = {f"{part}{i}": getattr(simple(size=2), part) for i in range(3) for part in PARTS}
    x = {"x": np.zeros((1, 2, 2, 4), np.uint8), "x_zero_point": np.zeros((), np.uint8)}
    with pytest.raises(Exception, match="upsample needs 4 kernels"):
        Operator(ops_library, "Convolution", {**x, **constants}, ["y"], tuple(constants), upsample=1)


@pytest.mark.parametrize("name", ["fine", "residual"])
def test_codes_of_two_bytes_or_with_a_residual_are_refused(ops_library: Path, name: str) -> None:
    x = np.zeros((1, 2, 2, 4), np.uint8)
    more = {"fine": x} if name == "fine" else {"residual": np.zeros((1, 2, 2, 2), np.float32)}
    with pytest.raises(Exception, match=rf"nextscale\.Convolution: the input {name} is for float results"):
        operator(ops_library, "", x, 0, [simple()], **more)


@pytest.mark.parametrize(
    ("kernels", "stride", "message"),
    [([simple()], 3, "stride is 3, expected 1 or 2"), ([simple(size=2)] * 4, 2, "upsample has stride 1")],
)
def test_strides_that_do_not_fit_are_refused(
    ops_library: Path, kernels: list[Kernel], stride: int, message: str
) -> None:
    with pytest.raises(Exception, match=r"nextscale\.Convolution: " + message):
        operator(ops_library, "", np.zeros((1, 2, 2, 4), np.uint8), 0, kernels, stride=stride)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 3)])
def test_odd_pictures_are_refused_with_stride_two(ops_library: Path, height: int, width: int) -> None:
    run = operator(ops_library, "", np.zeros((1, height, width, 4), np.uint8), 0, [simple()], stride=2)
    with pytest.raises(Exception, match=rf"stride 2 needs an even height and width, found \[{height}, {width}\]"):
        run()


def test_an_unknown_result_is_refused(ops_library: Path) -> None:
    with pytest.raises(Exception, match=r"nextscale\.Convolution: result is 'half', expected codes or float"):
        operator(ops_library, "", np.zeros((1, 2, 2, 4), np.uint8), 0, [simple()], result="half")


@pytest.mark.parametrize("upsample", [False, True])
def test_planes_that_do_not_fit_are_refused(ops_library: Path, upsample: bool) -> None:
    x, zoom = np.zeros((1, 2, 3, 4), np.uint8), 1 + upsample
    residual = np.zeros((1, 2 * zoom, 3 * zoom, 2), np.float32)
    kernels = [simple(size=2)] * 4 if upsample else [simple()]
    run = operator(ops_library, "", x, 0, kernels, result="float", fine=x, residual=residual)
    with pytest.raises(Exception, match=r"the input fine has the shape \[1, 2, 2, 4\], expected \[1, 2, 3, 4\]"):
        run(fine=x[:, :, 1:])
    expected = rf"expected \[1, {2 * zoom}, {3 * zoom}, 2\]"
    with pytest.raises(Exception, match=rf"the input residual has the shape \[1, 1, {3 * zoom}, 2\], {expected}"):
        run(residual=residual[:, :1])
