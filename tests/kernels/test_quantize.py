"""Quantize and NormQuantize against NumPy, on each instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from decoder_oracle import codes_and_fine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from operator_oracle import LEAST_SCALE, image_ranges, layer_norm, token_ranges, unrounded_codes
from operator_session import Operator

Array = NDArray[Any]
RANGES = ("static", "pair", "image", "token")
# One of each, tails of vectors and of four vectors, and sizes without tails.
SHAPES = [(2, 1, 1), (2, 5, 37), (4, 3, 100), (6, 17, 64), (2, 40, 1024)]
EPSILON = 1e-6
KNOWN: dict[str, Array] = {"scale": np.array(0.03, np.float32), "zero_point": np.array(100, np.uint8)}
DIFFERENCE: dict[str, Array] = {
    "difference_scale": np.array([0.05], np.float32),
    "difference_zero_point": np.array([131], np.uint8),
}
OUTPUTS = {"static": ["codes"], "pair": ["codes", "difference"]}


def inputs_of(x: dict[str, Array], ranges: str) -> dict[str, Array]:
    known = {"static": KNOWN, "pair": KNOWN | DIFFERENCE}.get(ranges, {})
    return x | known


def quantizer(library: Path, op_type: str, x: dict[str, Array], ranges: str, **options: Any) -> Operator:
    """Quantize or NormQuantize, which have the same outputs."""
    outputs = OUTPUTS.get(ranges, ["codes", "", "scale", "zero_point"])
    if op_type == "NormQuantize":
        options["epsilon"] = EPSILON
    if ranges == "token":
        options.setdefault("token_zero_point", 5)
    return Operator(library, op_type, inputs_of(x, ranges), outputs, ranges=ranges, **options)


def numbers(shape: tuple[int, int, int], seed: int = 0) -> Array:
    """Of different sizes in each row and token."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.1, 3, (*shape[:2], 1))
    return (rng.standard_normal(shape) * sizes + 0.1).astype(np.float32)


def norm_inputs(shape: tuple[int, int, int], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed + 1)
    rows, _, k = shape
    gain, shift = rng.standard_normal((2, rows, 1, k)).astype(np.float32)
    return {"x": numbers(shape, seed), "gain": gain, "shift": shift}


def norm_error(x: dict[str, Array]) -> Array:
    """Of float32's norms of each token, [R, l, 1]: a few roundings of numbers as large as the largest."""
    exact = x["x"].astype(np.float64)
    largest = np.abs(exact).max(-1, keepdims=True, initial=0)
    deviation = np.sqrt(exact.var(-1, keepdims=True) + EPSILON)
    gain, shift = (np.abs(x[name]).max(-1, keepdims=True) for name in ("gain", "shift"))
    error: Array = 4 * np.finfo(np.float32).eps * (gain * (largest / deviation + 1) + shift)
    return error


def check(found: list[Array], x: Array, error: Array | float, ranges: str, bits: int, image_rows: int) -> None:
    """Codes of x [R, l, K], whose float32 numbers may be off by `error` [R, l, 1].

    A code and a range have three roundings more.
    """
    eps, qmax = float(np.finfo(np.float32).eps), 2**bits - 1
    error = np.broadcast_to(error, (*x.shape[:2], 1))
    half = len(x) // 2
    if ranges == "static":
        scales = [KNOWN["scale"]]
        wanted, errors = [unrounded_codes(x, scales[0], 100, bits)], [error]
    elif ranges == "pair":
        u, d = x[half:], x[:half] - x[half:]
        scales = [KNOWN["scale"], DIFFERENCE["difference_scale"]]
        wanted = [unrounded_codes(u, scales[0], 100, bits), unrounded_codes(d, scales[1], 131, bits)]
        errors = [error[half:], error[:half] + error[half:] + eps * np.abs(d)]
    else:
        if ranges == "image":
            scale, _ = image_ranges(x, image_rows, bits)
            images = [slice(r, None, len(x) // image_rows) for r in range(len(x) // image_rows)] * image_rows
            ends = np.array([error[image].max(initial=0) for image in images])
            # Where it is near a tie, either zero point is right.
            unrounded = np.array([-x[image].min(initial=0) for image in images]) / scale
            assert np.all(np.abs(found[2] - unrounded) <= 0.5 + 3 * eps * qmax + 2 * ends / scale)
            shape = (-1, 1, 1)
        else:
            scale, ends = token_ranges(x, 5, bits), error[:, :, 0]
            assert np.all(found[2] == 5)
            shape = (*x.shape[:2], 1)
        assert np.all(np.abs(found[1] - scale) <= 3 * eps * scale + ends)
        # Codes of the range that was found.
        scales = [found[1].astype(np.float64).reshape(shape)]
        wanted, errors = [unrounded_codes(x, scales[0], found[2].reshape(shape), bits)], [error]
    for codes, unrounded, scale, off in zip(found, wanted, scales, errors, strict=False):
        assert codes.max(initial=0) <= qmax
        assert np.all(np.abs(codes - unrounded) <= 0.5 + 3 * eps * qmax + off / scale)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 37), (3, 100, 64)])
def test_static_ranges_clip_and_round_ties_to_even(
    ops_library: Path, isa: str, shape: tuple[int, int, int], bits: int
) -> None:
    rng = np.random.default_rng(1)
    x = (rng.integers(-600, 600, shape) / 4).astype(np.float32)  # of a scale of 0.5, every other one a tie
    scale, zero_point = np.array(0.5, np.float32), np.array(1, np.uint8)
    inputs: dict[str, Array] = {"x": x, "scale": scale, "zero_point": zero_point}
    (codes,) = Operator(ops_library, "Quantize", inputs, ["codes"], isa=isa, ranges="static", bits=bits)()
    expected = np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1).astype(np.uint8)
    np.testing.assert_array_equal(codes, expected)


def fine_quantizer(library: Path, x: Array, known: dict[str, Array], **options: Any) -> Operator:
    outputs = ["codes", "", "", "", "fine"]
    return Operator(library, "Quantize", {"x": x, **known}, outputs, ranges="static", fine=1, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_fine_codes_are_of_what_codes_leave_over(ops_library: Path, isa: str, shape: tuple[int, int, int]) -> None:
    x = numbers(shape)
    codes, fine = fine_quantizer(ops_library, x, KNOWN, isa=isa)()
    expected = codes_and_fine(x, KNOWN["scale"], KNOWN["zero_point"])
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(fine, expected[1])
    # In the range they have together half a 128th of a step's error.
    scale = KNOWN["scale"].astype(np.float64)
    found = scale * (codes - 100.0 + (fine - 64.0) / 128)
    bound = scale / 256 + np.spacing(np.float32(5))
    assert np.all((np.abs(found - x) <= bound) | (np.abs(x) > 100 * scale))


def test_fine_codes_clip_and_round_ties_to_even(ops_library: Path, isa: str) -> None:
    """In powers of two, which leave nothing to chance."""
    known = {"scale": np.array(0.5, np.float32), "zero_point": np.array(10, np.uint8)}
    over = {
        0.0: 64,
        0.5: 64,  # the next code
        0.25: 128,  # a tie goes to code 10, 0
        0.75: 0,  # to code 12, 1
        1.5 / 256: 66,  # ties of fine codes, of which one is 1 / 256
        2.5 / 256: 66,
        -2.5 / 256: 62,
        1000.0: 255,  # beyond the range
        -1000.0: 0,
    }
    x = np.array(list(over), np.float32).reshape(1, 1, -1)
    codes, fine = fine_quantizer(ops_library, x, known, isa=isa)()
    assert codes.ravel().tolist() == [10, 11, 10, 12, 10, 10, 10, 255, 0]
    assert fine.ravel().tolist() == list(over.values())


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes(ops_library: Path, isa: str, shape: tuple[int, int, int], ranges: str) -> None:
    x = numbers(shape)
    for bits in (8, 6) if ranges in ("image", "token") else (8,):
        found = quantizer(ops_library, "Quantize", {"x": x}, ranges, isa=isa, bits=bits, image_rows=2)()
        check(found, x.astype(np.float64), 0, ranges, bits, 2)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_of_norms(ops_library: Path, isa: str, shape: tuple[int, int, int], ranges: str) -> None:
    x = norm_inputs(shape)
    found = quantizer(ops_library, "NormQuantize", x, ranges, isa=isa, image_rows=2)()
    check(found, layer_norm(**x, epsilon=EPSILON), norm_error(x), ranges, 8, 2)


@pytest.mark.parametrize("image_rows", [1, 2, 3])
def test_images_are_rows_that_lie_apart(ops_library: Path, isa: str, image_rows: int) -> None:
    x = numbers((6, 7, 50)) * np.arange(1, 7, dtype=np.float32)[:, None, None]
    found = quantizer(ops_library, "Quantize", {"x": x}, "image", isa=isa, image_rows=image_rows)()
    check(found, x.astype(np.float64), 0, "image", 8, image_rows)
    images = 6 // image_rows
    assert len(set(found[1])) == images
    np.testing.assert_array_equal(found[1], np.tile(found[1][:images], image_rows))


@pytest.mark.parametrize("ranges", ["image", "token"])
def test_ranges_of_nothing_but_zeros_and_of_one_sign(ops_library: Path, isa: str, ranges: str) -> None:
    x = np.zeros((3, 2, 40), np.float32)
    x[1], x[2] = 3.0, -2.0
    codes, scale, zero_point = quantizer(ops_library, "Quantize", {"x": x}, ranges, isa=isa)()
    scale, zero_point = scale.reshape(3, -1), zero_point.reshape(3, -1)
    assert np.all(scale[0] == np.float32(LEAST_SCALE))
    assert np.all(codes[0] == zero_point[0, 0])
    np.testing.assert_allclose(scale[1], 3 / (255 if ranges == "image" else 250), rtol=1e-6)
    np.testing.assert_allclose(scale[2], 2 / (255 if ranges == "image" else 5), rtol=1e-6)
    np.testing.assert_array_equal(zero_point[:, 0], [0, 0, 255] if ranges == "image" else [5, 5, 5])
    assert np.all(codes[1] == 255)
    assert np.all(codes[2] == 0)


def test_a_zero_point_of_an_image_is_rounded_to_even(ops_library: Path, isa: str) -> None:
    # Of 4 codes: -low / scale = 0.5, 1.5, 2.5 and the powers of two make all of it exact.
    for low, high, expected in ((-0.5, 2.5, 0), (-1.5, 1.5, 2), (-2.5, 0.5, 2)):
        x = np.array([[[low, high]]], np.float32)
        _, scale, zero_point = quantizer(ops_library, "Quantize", {"x": x}, "image", isa=isa, bits=2)()
        assert (scale[0], zero_point[0]) == (1.0, expected)


@pytest.mark.parametrize("mean", [0.0, 100.0, -10000.0])
def test_norms_are_as_exact_as_onnxruntimes(ops_library: Path, isa: str, mean: float) -> None:
    """The range of an image is a number that a norm gives: its largest, of a gain that leaves one channel."""
    k, channels = 1024, 16
    x = np.repeat((numbers((1, 1, k), 3) + np.float32(mean)).astype(np.float32), channels, 0)
    gain = np.zeros((channels, 1, k), np.float32)
    gain[np.arange(channels), 0, np.argsort(-x[0, 0])[:channels]] = 1
    shift = np.zeros_like(gain)
    _, scale, _ = quantizer(ops_library, "NormQuantize", {"x": x, "gain": gain, "shift": shift}, "image", isa=isa)()
    exact = layer_norm(x, gain, shift, EPSILON).max((1, 2))
    node = helper.make_node("LayerNormalization", ["x", "ones"], ["y"], axis=-1, epsilon=EPSILON)
    values = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "ones", "y")]
    graph = helper.make_graph([node], "norm", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (stock,) = session.run(None, {"x": x, "ones": np.ones(k, np.float32)})
    stock_error = np.abs((stock * gain).max((1, 2)) / exact - 1).max()
    error = np.abs(scale.astype(np.float64) * 255 / exact - 1).max()
    assert error <= stock_error + 3 * np.finfo(np.float32).eps  # the roundings of a range


@pytest.mark.parametrize("op_type", ["Quantize", "NormQuantize"])
@pytest.mark.parametrize("ranges", RANGES)
def test_threads_batches_and_instruction_sets_give_the_same_bits(
    ops_library: Path, isa: str, ranges: str, op_type: str
) -> None:
    shape = (6, 200, 100)
    x = norm_inputs(shape) if op_type == "NormQuantize" else {"x": numbers(shape)}
    one = quantizer(ops_library, op_type, x, ranges, isa="portable", image_rows=2)()
    for threads in (1, 2, 3, 8):
        found = quantizer(ops_library, op_type, x, ranges, isa=isa, image_rows=2, threads=threads)()
        for a, b in zip(one, found, strict=True):
            np.testing.assert_array_equal(a, b)
    rows = [1, 4]  # the second image
    single = quantizer(ops_library, op_type, {name: a[rows] for name, a in x.items()}, ranges, isa=isa, image_rows=2)()
    for a, b in zip(one, single, strict=True):
        np.testing.assert_array_equal(a[[1]] if ranges == "pair" else a[rows], b)


def test_threads_batches_and_instruction_sets_give_the_same_fine_codes(ops_library: Path, isa: str) -> None:
    x = numbers((6, 200, 100))
    one = fine_quantizer(ops_library, x, KNOWN, isa="portable")()
    for threads in (1, 2, 3, 8):
        run = fine_quantizer(ops_library, x, KNOWN, isa=isa, threads=threads)
        for a, b, c in zip(one, run(), run(x=x[1:2]), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a[1:2], c)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(
    rows=st.integers(0, 4),
    tokens=st.integers(0, 20),
    k=st.integers(1, 150),
    bits=st.integers(4, 8),
    ranges=st.sampled_from(RANGES),
    norms=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    ops_library: Path, rows: int, tokens: int, k: int, bits: int, ranges: str, norms: bool, seed: int
) -> None:
    shape = (2 * rows, tokens, k)
    x = norm_inputs(shape, seed) if norms else {"x": numbers(shape, seed)}
    found = quantizer(
        ops_library, "NormQuantize" if norms else "Quantize", x, ranges, bits=bits, image_rows=2, threads=2
    )()
    if norms:
        check(found, layer_norm(**x, epsilon=EPSILON), norm_error(x), ranges, bits, 2)
    else:
        check(found, x["x"].astype(np.float64), 0, ranges, bits, 2)


def refusal(library: Path, op_type: str, x: dict[str, Array], ranges: str, **options: Any) -> str:
    with pytest.raises(Exception) as refused:  # noqa: PT011  onnxruntime's have no common base
        quantizer(library, op_type, x, ranges, **options)()
    return str(refused.value)


def test_what_does_not_fit_is_said(ops_library: Path) -> None:
    x = {"x": numbers((3, 2, 10))}
    norms = norm_inputs((3, 2, 10))
    assert "the input x has the shape [2, 10], expected [?, ?, ?]" in refusal(
        ops_library, "Quantize", {"x": x["x"][0]}, "static"
    )
    assert "a pair has an even number of rows, found 3" in refusal(ops_library, "Quantize", x, "pair")
    for ranges, bits in (("pair", 8), ("image", 8), ("token", 8), ("static", 7)):
        assert "fine is for static ranges of 8 bits" in refusal(ops_library, "Quantize", x, ranges, bits=bits, fine=1)
    assert "fine must be 0 or 1" in refusal(ops_library, "Quantize", x, "static", fine=2)
    assert "images have 2 rows, found 3 in all" in refusal(ops_library, "Quantize", x, "image", image_rows=2)
    assert "token_zero_point is 255, expected 1 to 254" in refusal(
        ops_library, "Quantize", x, "token", token_zero_point=255
    )
    assert "the input gain has the shape [3, 1, 9], expected [3, 1, 10]" in refusal(
        ops_library, "NormQuantize", {**norms, "gain": norms["gain"][:, :, 1:]}, "static"
    )
    assert "the input shift has the shape [2, 1, 10], expected [3, 1, 10]" in refusal(
        ops_library, "NormQuantize", {**norms, "shift": norms["shift"][1:]}, "static"
    )
