"""Linear and PairLinear against NumPy, on each instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operator_oracle import gelu_tanh, image_ranges, product, token_ranges, unrounded_codes
from operator_session import Operator, has_instruction_set

# (rows, tokens, K, N): one of each, tails of blocks, steps and panels, and sizes without tails.
SHAPES = [(2, 1, 1, 1), (2, 5, 37, 3), (2, 17, 64, 32), (4, 33, 130, 70), (6, 9, 256, 96)]
Array = NDArray[Any]


def layer(shape: tuple[int, int, int, int], pair: bool, seed: int = 0) -> dict[str, Array | None]:
    """Inputs with the extreme codes among them."""
    rows, tokens, k, n = shape
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (k, n)).astype(np.int8)
    weight[:, 0] = -128
    further = {
        "weight": weight,
        "weight_scale": rng.uniform(0.001, 0.01, n).astype(np.float32),
        "bias": rng.standard_normal(n).astype(np.float32),
    }
    if pair:
        u, d = rng.integers(0, 256, (2, rows // 2, tokens, k)).astype(np.uint8)
        u[0, 0] = 255
        return {
            "u": u,
            "d": d,
            "u_scale": np.array(0.03, np.float32),
            "u_zero_point": np.array(255, np.uint8),
            "d_scale": np.array([0.01], np.float32),
            "d_zero_point": np.array([0], np.uint8),
            **further,
        }
    codes = rng.integers(0, 256, (rows, tokens, k)).astype(np.uint8)
    codes[0, 0] = 255
    return {"codes": codes, "scale": np.array(0.02, np.float32), "zero_point": np.array(3, np.uint8), **further}


def expected_of(inputs: dict[str, Any], pair: bool) -> Array:
    """[R, l, N] in float64."""
    weights = inputs["weight"], inputs["weight_scale"]
    if not pair:
        scale, zero_point = inputs["scale"], inputs["zero_point"]
        if scale.size > 1:
            shape = (len(inputs["codes"]), -1, 1)
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return product(inputs["codes"], scale, zero_point, *weights) + inputs["bias"]
    u, d = (product(inputs[x], inputs[f"{x}_scale"], inputs[f"{x}_zero_point"], *weights) for x in ("u", "d"))
    return np.concatenate([u + d + inputs["bias"], u + inputs["bias"]])


def bound(inputs: dict[str, Any], pair: bool) -> Array:
    """Of the float32 roundings: four of a product's size and of the bias."""
    absolute = {**inputs, "bias": np.abs(inputs["bias"])}
    eps = np.finfo(np.float32).eps
    weights = np.abs(inputs["weight"].astype(np.int64)).astype(np.int64), inputs["weight_scale"]
    names = ("u", "d") if pair else ("codes",)
    total = 0
    for name in names:
        prefix = f"{name}_" if pair else ""
        scale = np.max(inputs[f"{prefix}scale"])
        total = total + product(inputs[name], scale, 0, *weights) + 255 * scale * weights[0].sum(0) * weights[1]
    total = total + absolute["bias"]
    return 4 * eps * (np.concatenate([total, total]) if pair else total)


OPERATORS = [pytest.param(False, id="Linear"), pytest.param(True, id="PairLinear")]


def operator(library: Path, pair: bool, inputs: dict[str, Any], outputs: list[str], **options: Any) -> Operator:
    constants = ["weight", "weight_scale", *(["bias"] if inputs.get("bias") is not None else [])]
    return Operator(library, "PairLinear" if pair else "Linear", inputs, outputs, constants, **options)


@pytest.mark.parametrize("pair", OPERATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float_results(ops_library: Path, isa: str, shape: tuple[int, int, int, int], pair: bool) -> None:
    inputs = layer(shape, pair)
    (y,) = operator(ops_library, pair, inputs, ["y"], isa=isa)()
    assert np.all(np.abs(y - expected_of(inputs, pair)) <= bound(inputs, pair))


@pytest.mark.parametrize("pair", OPERATORS)
def test_weights_not_known_to_be_constant_are_those_of_the_first_call(ops_library: Path, pair: bool) -> None:
    """As ONNX Runtime before 1.30 gives a Loop's body those of the graph around it."""
    inputs: dict[str, Any] = layer((4, 21, 70, 40), pair)
    (expected,) = operator(ops_library, pair, inputs, ["y"])()
    fed = Operator(ops_library, "PairLinear" if pair else "Linear", inputs, ["y"])
    for _ in range(2):
        np.testing.assert_array_equal(fed()[0], expected)
    for name in ("weight", "weight_scale", "bias"):
        with pytest.raises(Exception, match="the inputs weight, weight_scale and bias must be constant"):
            fed(**{name: inputs[name].copy()})
    with pytest.raises(Exception, match=r"the input weight_scale has 3 elements, expected 1 or 40"):
        Operator(ops_library, "PairLinear" if pair else "Linear", inputs, ["y"])(weight_scale=np.ones(3, np.float32))


@pytest.mark.parametrize("each", ["row", "token"])
def test_a_scale_and_a_zero_point_for_each_row_or_token(ops_library: Path, isa: str, each: str) -> None:
    inputs: dict[str, Any] = layer((4, 21, 70, 40), False)
    rng = np.random.default_rng(3)
    count = 4 if each == "row" else (4, 21)
    inputs["scale"] = rng.uniform(0.01, 0.03, count).astype(np.float32)
    inputs["zero_point"] = rng.integers(0, 256, count).astype(np.uint8)
    (y,) = operator(ops_library, False, inputs, ["y"], isa=isa)()
    assert np.all(np.abs(y - expected_of(inputs, False)) <= bound(inputs, False))


@pytest.mark.parametrize("pair", OPERATORS)
def test_residual_and_gain(ops_library: Path, isa: str, pair: bool) -> None:
    inputs: dict[str, Any] = layer((4, 21, 70, 40), pair)
    rng = np.random.default_rng(4)
    inputs["residual"] = rng.standard_normal((4, 21, 40)).astype(np.float32)
    inputs["gain"] = rng.standard_normal((4, 1, 40)).astype(np.float32)
    (y,) = operator(ops_library, pair, inputs, ["y"], isa=isa)()
    expected = inputs["residual"] + inputs["gain"] * expected_of(inputs, pair)
    allowed = np.abs(inputs["gain"]) * bound(inputs, pair) + 2 * np.finfo(np.float32).eps * np.abs(expected)
    assert np.all(np.abs(y - expected) <= allowed + 1e-7)


@pytest.mark.parametrize("ranges", ["static", "pair", "image", "token"])
@pytest.mark.parametrize("pair", OPERATORS)
def test_codes_of_gelu(ops_library: Path, isa: str, pair: bool, ranges: str) -> None:
    inputs: dict[str, Any] = layer((4, 21, 70, 40), pair)
    inputs |= {"bias": None, "residual": None, "gain": None}
    known = {"y_scale": np.array(0.1, np.float32), "y_zero_point": np.array(2, np.uint8)}
    difference = {"y_difference_scale": np.array(0.07, np.float32), "y_difference_zero_point": np.array(99, np.uint8)}
    if ranges in ("static", "pair"):
        inputs |= known
    if ranges == "pair":
        inputs |= difference
    outputs = {"static": ["codes"], "pair": ["codes", "difference"]}.get(ranges, ["codes", "", "scale", "zero"])
    bits = 6
    found = operator(
        ops_library,
        pair,
        inputs,
        ["", *outputs],
        isa=isa,
        activation="gelu_tanh",
        ranges=ranges,
        bits=bits,
        image_rows=2,
        token_zero_point=5,
    )()
    x = gelu_tanh(expected_of({**inputs, "bias": np.zeros(40)}, pair))
    if ranges == "static":
        wanted = [unrounded_codes(x, 0.1, 2, bits)]
    elif ranges == "pair":
        wanted = [unrounded_codes(x[2:], 0.1, 2, bits), unrounded_codes(x[:2] - x[2:], 0.07, 99, bits)]
    elif ranges == "image":
        scale, zero_point = image_ranges(x, 2, bits)
        np.testing.assert_allclose(found[1], scale, rtol=1e-5)
        np.testing.assert_array_equal(found[2], zero_point)
        wanted = [unrounded_codes(x, scale[:, None, None], zero_point[:, None, None], bits)]
    else:
        scale = token_ranges(x, 5, bits)
        np.testing.assert_allclose(found[1], scale, rtol=1e-5)
        assert np.all(found[2] == 5)
        wanted = [unrounded_codes(x, scale[:, :, None], 5, bits)]
    for codes, exact in zip(found, wanted, strict=False):
        # Within float32's rounding of a tie either code is right.
        assert np.all(np.abs(codes - exact) <= 0.5 + 1e-3)


@pytest.mark.parametrize("pair", OPERATORS)
def test_threads_batches_and_instruction_sets_give_the_same_bits(ops_library: Path, isa: str, pair: bool) -> None:
    inputs: dict[str, Any] = layer((8, 40, 200, 400), pair)
    inputs |= {"residual": None, "gain": None}
    options: dict[str, Any] = {"activation": "gelu_tanh", "ranges": "image", "image_rows": 2}
    outputs = ["", "codes", "", "scale", "zero"]
    one = operator(ops_library, pair, inputs, outputs, isa="portable", **options)()
    for threads in (1, 2, 3, 8):
        for a, b in zip(
            one, operator(ops_library, pair, inputs, outputs, isa=isa, threads=threads, **options)(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    names = ("u", "d") if pair else ("codes",)
    rows = [0] if pair else [0, 4]
    single = operator(
        ops_library, pair, {**inputs, **{n: inputs[n][rows] for n in names}}, outputs, isa=isa, **options
    )()
    for a, b in zip(one, single, strict=True):
        np.testing.assert_array_equal(a[[0, 4]], b)


@pytest.mark.parametrize("pair", OPERATORS)
@pytest.mark.parametrize("shape", [(0, 5, 37, 3), (2, 0, 37, 3)])
def test_nothing_gives_nothing(ops_library: Path, shape: tuple[int, int, int, int], pair: bool) -> None:
    rows, tokens, k, n = shape
    inputs = layer((2, 1, k, n), pair)
    for name in ("u", "d") if pair else ("codes",):
        inputs[name] = np.zeros((rows // 2 if pair else rows, tokens, k), np.uint8)
    (y,) = operator(ops_library, pair, inputs, ["y"])()
    assert y.shape == (rows, tokens, n)


def refusal(library: Path, pair: bool, inputs: dict[str, Any], **options: Any) -> str:
    with pytest.raises(Exception) as refused:  # noqa: PT011  onnxruntime's have no common base
        operator(library, pair, inputs, ["y"], **options)()
    return str(refused.value)


def test_what_does_not_fit_is_said(ops_library: Path) -> None:
    inputs: dict[str, Any] = layer((2, 5, 37, 3), False)
    assert "the input codes has the shape [2, 5, 36], expected [?, ?, 37]" in refusal(
        ops_library, False, {**inputs, "codes": inputs["codes"][:, :, 1:]}
    )
    assert "weight_scale has 2 elements, expected 1 or 3" in refusal(
        ops_library, False, {**inputs, "weight_scale": inputs["weight_scale"][1:]}
    )
    assert "expected both 1, 2 or 10" in refusal(
        ops_library, False, {**inputs, "scale": np.ones(3, np.float32), "zero_point": np.ones(3, np.uint8)}
    )
    assert "activation is 'relu'" in refusal(ops_library, False, inputs, activation="relu")
    assert "ranges is 'row'" in refusal(ops_library, False, inputs, ranges="row")
    assert "bits is 9" in refusal(ops_library, False, inputs, bits=9)


def test_an_unknown_instruction_set_is_refused(ops_library: Path) -> None:
    assert not has_instruction_set(ops_library, "vax")
    assert "NEXTSCALE_OPS_ISA" in refusal(ops_library, False, layer((2, 5, 37, 3), False), isa="vax")
