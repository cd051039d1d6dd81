"""Integer convolutions: their numbers to the last code, one kernel for each Conv, and what shares codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.graph_passes.convolutions import convolutions
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_convolutions import ConvolutionRanges, quantize_convolutions

from .convolution_model import (
    Coding,
    Floats,
    Shape,
    assert_codes,
    channel_range,
    integer_convolution,
    kernels,
    model,
    normal,
    range_of,
    run,
    session_of,
)

# Axes, channels in and out, kernel, and how.
FORMS: dict[str, tuple[int, int, int, tuple[int, ...], Shape]] = {
    "1-D": (1, 3, 4, (3,), Shape((1,), (1,), (0, 0))),
    "1-D strided": (1, 6, 4, (4,), Shape((3,), (1,), (2, 1), 2)),
    "1-D dilated": (1, 4, 4, (3,), Shape((1,), (3,), (1, 2), 4)),
    "2-D": (2, 5, 7, (3, 3), Shape((1, 1), (1, 1), (1, 1, 1, 1))),
    "of one place": (2, 16, 8, (1, 1), Shape((1, 1), (1, 1), (0, 0, 0, 0))),
    "oblong": (2, 3, 4, (1, 5), Shape((2, 1), (1, 2), (0, 3, 1, 0))),
    "groups": (2, 8, 12, (3, 3), Shape((2, 2), (1, 1), (1, 0, 0, 1), 4)),
    "depthwise": (2, 6, 6, (3, 3), Shape((1, 1), (1, 1), (1, 1, 1, 1), 6)),
    "depthwise times two": (2, 3, 6, (3, 3), Shape((1, 1), (2, 2), (2, 2, 2, 2), 3)),
    "same upper": (2, 3, 4, (4, 3), Shape((2, 1), (1, 1), (), 1, "SAME_UPPER")),
    "same lower": (2, 3, 4, (4, 3), Shape((2, 1), (1, 1), (), 1, "SAME_LOWER")),
    "valid": (2, 3, 4, (2, 2), Shape((1, 2), (2, 1), (), 1, "VALID")),
    "one channel in": (2, 1, 3, (3, 3), Shape((1, 1), (1, 1), (1, 1, 1, 1))),
    "one channel out": (2, 3, 1, (3, 3), Shape((1, 1), (1, 1), (1, 1, 1, 1))),
    "3-D": (3, 2, 3, (3, 2, 3), Shape((1, 2, 1), (1, 1, 2), (1, 0, 2, 1, 1, 2))),
    "3-D depthwise": (3, 4, 4, (3, 3, 3), Shape((1, 1, 1), (1, 1, 1), (1,) * 6, 4)),
}
# What is behind the Conv, and the ends of what its codes are for: those of the result are given.
BEHIND = {
    "nothing": "h = Identity (c)",
    "Relu": "h = Relu (c)",
    "Clip": "h = Clip (c, low, high)",
    "Relu6": "h = Clip (c, zero, high)",
    "Clip from below": "h = Clip (c, low)",
    "Clip from above": "h = Clip (c, , high)",
}
CONSTANTS = {"low": np.float32(-0.75), "zero": np.float32(0), "high": np.float32(1.25)}


def behind(name: str, y: Floats) -> Floats:
    low = {"Relu": 0, "Clip": -0.75, "Relu6": 0, "Clip from below": -0.75}.get(name)
    high = {"Clip": 1.25, "Relu6": 1.25, "Clip from above": 1.25}.get(name)
    return y if low is None and high is None else np.clip(y, low, high)


def axes(count: int) -> str:
    return ", ".join(f"S{i}" for i in range(count))


def single(name: str, form: str, with_bias: bool) -> tuple[ir.Model, Floats, Floats, Floats | None, Floats]:
    """A Conv with something behind it, its weight and bias, what it reads, and what it gives in float."""
    spatial, channels_in, channels_out, kernel, shape = FORMS[form]
    rng = np.random.default_rng(len(form))
    size = (7, 6, 5)[:spatial] if spatial > 1 else (11,)
    x = normal(rng, 2, channels_in, *size) + np.float32(0.3)
    weight = normal(rng, channels_out, channels_in // shape.group, *kernel)
    bias = normal(rng, channels_out) if with_bias else None
    used = {key: array for key, array in CONSTANTS.items() if key in BEHIND[name]}
    text = f"""g (float[N, {channels_in}, {axes(spatial)}] x) => (float[N, {channels_out}, {axes(spatial)}] y) {{
        c = Conv {shape.attributes()} (x, w{", b" if with_bias else ""})
        {BEHIND[name]}
        y = Identity (h)
    }}"""
    built = model(text, w=weight, **({} if bias is None else {"b": bias}), **used)
    return built, x, weight, bias, run(built, x)[0]


def ranges_of(x: Floats, y: Floats) -> ConvolutionRanges:
    return ConvolutionRanges(range_of(x), range_of(y))


def coding(x: Floats) -> Coding:
    return Coding.of(float(x.min()), float(x.max()))


@pytest.mark.exact_products
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_all_forms_to_the_last_code(form: str, with_bias: bool, tmp_path: Path) -> None:
    name = "Relu" if with_bias else "nothing"
    built, x, weight, bias, y = single(name, form, with_bias)
    before = ir.to_proto(built).SerializeToString()
    integer = quantize_convolutions(built, {"c": ranges_of(x, y)})
    assert ir.to_proto(built).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    expected = integer_convolution(coding(x).codes(x), weight, bias, coding(x), coding(y), FORMS[form][4])
    for optimized in (False, True):
        assert_codes(run(integer, x, optimized)[0], expected, coding(y))
    found = kernels(integer, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["FusedConv"], found["Relu"]) == (1, 0, 0, 0)


@pytest.mark.exact_products
@pytest.mark.parametrize("name", BEHIND)
def test_what_is_behind_goes_into_the_codes(name: str, tmp_path: Path) -> None:
    """The ends of codes are where a Relu or a Clip has its own; on inputs far beyond those that were observed."""
    built, x, weight, bias, y = single(name, "2-D", True)
    integer = quantize_convolutions(built, {"c": ranges_of(x, y)})
    assert y.min() == behind(name, y).min()
    assert {node.op_type for node in integer.graph} == {"QuantizeLinear", "DequantizeLinear", "Conv", "Identity"}
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    for given_x in (x, 3 * x):
        expected = integer_convolution(coding(x).codes(given_x), weight, bias, coding(x), coding(y), FORMS["2-D"][4])
        for optimized in (False, True):
            found = run(integer, given_x, optimized)[0]
            assert_codes(found, expected, coding(y))
            step = coding(y).step[0]
            assert np.abs(found - behind(name, found)).max() <= 0.5001 * step  # zero has a code, so ends may be off
    assert kernels(integer, tmp_path)["QLinearConv"] == 1


NOT_TAKEN: dict[str, tuple[str, str]] = {
    "a Clip above zero": ("h = Clip (c, above, high)", "Clip"),
    "a Clip below zero": ("h = Clip (c, low, below)", "Clip"),
    "a Clip whose lower end is computed": ("e = ReduceMin <keepdims = 0> (x)\n h = Clip (c, e, high)", "Clip"),
    "a Clip whose upper end is computed": ("e = ReduceMax <keepdims = 0> (x)\n h = Clip (c, zero, e)", "Clip"),
    "a Clip of which it is an end": (
        "e = ReduceMax <keepdims = 0> (c)\n h = Clip (x, zero, e)\n", "Clip",
    ),
    "a Relu and another reader": ("r = Relu (c)\n h = Add (r, c)", "Relu"),
    "LeakyRelu": ("h = LeakyRelu (c)", "LeakyRelu"),
    "com.microsoft's Relu": ("h = com.microsoft.Relu (c)", "Relu"),
}  # fmt: skip


@pytest.mark.exact_products
@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_is_no_end_of_codes_stays(name: str) -> None:
    """The Conv alone is integer, and what is behind it reads what its codes stand for."""
    text, stays = NOT_TAKEN[name]
    constants = {**CONSTANTS, "above": np.float32(0.25), "below": np.float32(-0.25)}
    rng = np.random.default_rng(3)
    used = {key: value for key, value in constants.items() if key in text}
    whole = f"""g (float[N, 3, A, B] x) => (float[N, 3, A, B] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        {text}
        y = Identity (h)
    }}"""
    weight, x = normal(rng, 3, 3, 3, 3), normal(rng, 2, 3, 5, 5)
    built = model(whole, w=weight, **used)
    (layer,) = convolutions(built.graph)
    assert (layer.result.name, layer.last is layer.node) == ("c", True)
    if "microsoft" in name:
        return
    given_c = run(model("g (float[N, 3, A, B] x) => (float[N, 3, A, B] c) { c = Conv <pads = [1, 1, 1, 1]> (x, w) }",
                        w=weight), x)[0]  # fmt: skip
    integer = quantize_convolutions(built, {"c": ranges_of(x, given_c)})
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    assert stays in {node.op_type for node in integer.graph}
    shape = Shape((1, 1), (1, 1), (1, 1, 1, 1))
    codes = integer_convolution(coding(x).codes(x), weight, None, coding(x), coding(given_c), shape).codes
    c = coding(given_c).floats(codes)
    expected = {
        "a Clip above zero": lambda: np.clip(c, 0.25, 1.25),
        "a Clip below zero": lambda: np.clip(c, -0.75, -0.25),
        "a Clip whose lower end is computed": lambda: np.clip(c, x.min(), 1.25),
        "a Clip whose upper end is computed": lambda: np.clip(c, 0, x.max()),
        "a Clip of which it is an end": lambda: np.clip(x, 0, c.max()),
        "a Relu and another reader": lambda: np.maximum(c, 0) + c,
        "LeakyRelu": lambda: np.where(c < 0, np.float32(0.01) * c, c),
    }[name]()
    for optimized in (False, True):
        # A code beside the expected one is as near up to rounding, but seldom.
        found = run(integer, x, optimized)[0]
        assert np.mean(np.abs(found - expected) > 1e-6) < 0.01
        assert np.abs(found - expected).max() <= 2.01 * coding(given_c).step[0]


TWO = """g (float[N, 4, A, B] x) => (float[N, 5, A, B] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
    h = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (h, wb, bb)
    y = Identity (b)
}"""
SAME = Shape((1, 1), (1, 1), (1, 1, 1, 1))


def two_weights(spread: tuple[float, ...] = (1, 0.03, 10, 0.3, 1, 0.01)) -> dict[str, Floats]:
    """Channels of what is between differ by these factors, and the second weight makes up for them."""
    rng, spread = np.random.default_rng(0), np.float32(spread)
    return {
        "wa": normal(rng, 6, 4, 3, 3) * spread[:, None, None, None],
        "ba": normal(rng, 6) * spread,
        "wb": normal(rng, 5, 6, 3, 3) / spread[:, None, None],
        "bb": normal(rng, 5),
    }


def between(text: str, weights: dict[str, Floats], x: Floats, name: str = "h") -> Floats:
    """A value of the graph in float."""
    proto = ir.to_proto(model(text, **weights))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return run(ir.from_proto(proto), x)[-1]


def energy(weight: Floats) -> Floats:
    """Of each input channel, without groups."""
    found: Floats = np.square(weight.astype(np.float64)).sum(axis=tuple(i for i in range(weight.ndim) if i != 1))
    return found


def channel_coding(h: Floats, weight: Floats, alpha: float) -> Coding:
    """The zero point of the least error, in plain Python; the steps s^alpha max(s)^(1 - alpha)."""
    found = channel_range(h)
    best: tuple[float, int, list[float]] | None = None
    for zero_point in range(256):
        steps = []
        for low, high in zip(found.minimum.tolist(), found.maximum.tolist(), strict=True):
            above = 0.0 if high <= 0 else float("inf") if zero_point == 255 else high / (255 - zero_point)
            below = 0.0 if low >= 0 else float("inf") if zero_point == 0 else -low / zero_point
            steps.append(max(above, below))
        loss = sum(step**2 * e for step, e in zip(steps, energy(weight).tolist(), strict=True))
        if best is None or loss < best[0]:
            best = loss, zero_point, steps
    assert best is not None
    alive = [step for step in best[2] if step > 0]
    steps32 = np.float32([step or min(alive) for step in best[2]])
    return Coding((steps32**alpha * steps32.max() ** (1 - alpha)).astype(np.float32), best[1])


def two_ranges(x: Floats, h: Floats, y: Floats) -> dict[str, ConvolutionRanges]:
    return {
        "a": ConvolutionRanges(channel_range(x), channel_range(h)),
        "b": ConvolutionRanges(channel_range(h), channel_range(y)),
    }


@pytest.mark.exact_products
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_channel_steps_between_two(alpha: float, tmp_path: Path) -> None:
    """What is between is never made float; ends outside have one step whatever alpha is."""
    weights, x = two_weights(), normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    integer = quantize_convolutions(model(TWO, **weights), two_ranges(x, h, y), alpha)
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    of_h = channel_coding(h, weights["wb"], alpha) if alpha else coding(h)
    first = integer_convolution(coding(x).codes(x), weights["wa"], weights["ba"], coding(x), of_h, SAME)
    second = integer_convolution(first.codes, weights["wb"], weights["bb"], of_h, coding(y), SAME)
    for optimized in (False, True):
        found = run(integer, x, optimized)[0]
        if np.array_equal(first.codes, first.other):
            assert_codes(found, second, coding(y))
        else:  # what a tie between changes, all behind it sees
            assert np.mean(found == coding(y).floats(second.codes)) > 0.98
    counts = kernels(integer, tmp_path)
    assert (counts["QLinearConv"], counts["QuantizeLinear"], counts["DequantizeLinear"]) == (2, 1, 1)


@pytest.mark.exact_products
def test_channel_steps_of_groups(tmp_path: Path) -> None:
    """Outputs of a group read the steps of its own channels alone; of what is high, low, large and small."""
    text = """g (float[N, 4, A, B] x) => (float[N, 9, A, B] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
        b = Conv <pads = [1, 1, 1, 1], group = 3> (a, wb, bb)
        y = Identity (b)
    }"""
    spread, rng = np.float32([1, 0.03, 10, 0.3, 1, 0.01]), np.random.default_rng(3)
    weights = {
        "wa": normal(rng, 6, 4, 3, 3) * spread[:, None, None, None],
        "ba": spread * np.float32([9, -9, 2, 5, 0, -7]),
        "wb": normal(rng, 9, 2, 3, 3) / spread.reshape(3, 1, 2).repeat(3, axis=1).reshape(9, 2, 1, 1),
        "bb": normal(rng, 9),
    }
    x = normal(rng, 3, 4, 6, 5)
    h, y = between(text, weights, x, "a"), between(text, weights, x, "b")
    integer = quantize_convolutions(model(text, **weights), two_ranges(x, h, y), 1.0)
    whole = np.zeros((9, 6, 3, 3), np.float32)
    for group in range(3):  # the same weight without groups
        whole[3 * group : 3 * group + 3, 2 * group : 2 * group + 2] = weights["wb"][3 * group : 3 * group + 3]
    of_h = channel_coding(h, whole, 1.0)
    first = integer_convolution(coding(x).codes(x), weights["wa"], weights["ba"], coding(x), of_h, SAME)
    second = integer_convolution(first.codes, whole, weights["bb"], of_h, coding(y), SAME)
    for optimized in (False, True):
        assert np.mean(run(integer, x, optimized)[0] == coding(y).floats(second.codes)) > 0.98
    assert kernels(integer, tmp_path)["QLinearConv"] == 2


@pytest.mark.exact_products
def test_channel_steps_are_nearer() -> None:
    weights, x = two_weights(), normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    errors = []
    for alpha in (0.0, 0.5, 1.0):
        integer = quantize_convolutions(model(TWO, **weights), two_ranges(x, h, y), alpha)
        errors.append(float(np.abs(run(integer, x)[0] - y).mean()))
    assert errors[2] < errors[1] < errors[0] / 2


@pytest.mark.exact_products
def test_a_channel_that_is_always_zero(tmp_path: Path) -> None:
    """Behind a Relu: its step is one of the others', and nothing overflows; it may wake up later."""
    weights, x = two_weights(), normal(np.random.default_rng(1), 3, 4, 6, 5)
    weights["ba"][2] = -1e4
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    assert (h[:, 2] == 0).all()
    integer = quantize_convolutions(model(TWO, **weights), two_ranges(x, h, y), 1.0)
    found = run(integer, x)[0]
    assert np.abs(found - y).max() < 0.03 * np.abs(y).max()
    numbers = [value.const_value.numpy() for value in integer.graph.initializers.values() if value.const_value]
    assert all(np.isfinite(array).all() for array in numbers if array.dtype.kind == "f")
    assert kernels(integer, tmp_path)["QLinearConv"] == 2


@pytest.mark.exact_products
def test_nothing_but_zeros_between() -> None:
    weights, x = two_weights(), normal(np.random.default_rng(1), 3, 4, 6, 5)
    weights["ba"] -= np.float32(1e4)
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    for alpha in (0.0, 1.0):
        integer = quantize_convolutions(model(TWO, **weights), two_ranges(x, h, y), alpha)
        # What is left is the bias, rounded to steps of the products and to those of the result.
        most = 0.501 * (coding(y).step[0] + np.abs(weights["wb"]).max() / 127)
        assert np.abs(run(integer, x)[0] - y).max() <= most


@pytest.mark.exact_products
def test_a_clip_has_one_step_for_all() -> None:
    """Steps of channels would end elsewhere than it."""
    text = TWO.replace("Relu (a)", "Clip (a, zero, high)")
    weights = {**two_weights((1,) * 6), "zero": np.float32(0), "high": np.float32(8)}
    x = normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, y = between(text, weights, x), between(text, weights, x, "b")
    integer = quantize_convolutions(model(text, **weights), two_ranges(x, h, y), 1.0)
    expected = quantize_convolutions(model(text, **weights), two_ranges(x, h, y), 0.0)
    assert ir.to_proto(integer).SerializeToString() == ir.to_proto(expected).SerializeToString()
    assert np.square(run(integer, x)[0] - y).mean() < 0.02**2 * np.square(y).mean()


RESIDUAL = """g (float[N, 4, A, B] x) => (float[N, 4, A, B] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    h = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (h, wb, bb)
    s = Add (h, b)
    r = Relu (s)
    d = Conv (r, wd)
    y = Identity (d)
}"""


@pytest.mark.exact_products
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_result_that_a_convolution_and_a_float_operator_read(alpha: float, tmp_path: Path) -> None:
    """It has one step for all channels, since floats are made of it; and both read the same codes."""
    rng = np.random.default_rng(4)
    weights = {
        "wa": normal(rng, 4, 4, 3, 3) * np.float32([1, 10, 0.1, 3])[:, None, None, None],
        "wb": normal(rng, 4, 4, 3, 3),
        "bb": normal(rng, 4),
        "wd": normal(rng, 4, 4, 1, 1),
    }
    x = normal(rng, 2, 4, 6, 6)
    h, b, r, y = (between(RESIDUAL, weights, x, name) for name in ("h", "b", "r", "d"))
    ranges = {
        "a": ConvolutionRanges(channel_range(x), channel_range(h)),
        "b": ConvolutionRanges(channel_range(h), channel_range(b)),
        "d": ConvolutionRanges(channel_range(r), channel_range(y)),
    }
    integer = quantize_convolutions(model(RESIDUAL, **weights), ranges, alpha)
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    place = Shape((1, 1), (1, 1), (0, 0, 0, 0))
    of_h = integer_convolution(coding(x).codes(x), weights["wa"], None, coding(x), coding(h), SAME).codes
    of_b = integer_convolution(of_h, weights["wb"], weights["bb"], coding(h), coding(b), SAME).codes
    found_r = np.maximum(coding(h).floats(of_h) + coding(b).floats(of_b), 0)
    expected = integer_convolution(coding(r).codes(found_r), weights["wd"], None, coding(r), coding(y), place)
    exact = run(integer, x, False)[0]
    assert np.mean((exact == coding(y).floats(expected.codes)) | (exact == coding(y).floats(expected.other))) > 0.98
    # ONNX Runtime adds codes with QLinearAdd, which rounds to those of the next convolution's input in its own way.
    assert np.abs(run(integer, x)[0] - exact).max() < 0.02 * np.abs(y).max()
    assert kernels(integer, tmp_path)["QLinearConv"] == 3


@pytest.mark.exact_products
def test_an_input_that_two_read_in_ranges_that_differ(tmp_path: Path) -> None:
    """It has the range that holds both, and is quantized once."""
    text = """g (float[N, 3, A, B] x) => (float[N, 2, A, B] y, float[N, 4, A, B] z) {
        a = Conv (x, wa)
        b = Conv (x, wb)
        y = Identity (a)
        z = Identity (b)
    }"""
    rng = np.random.default_rng(5)
    weights, x = {"wa": normal(rng, 2, 3, 1, 1), "wb": normal(rng, 4, 3, 1, 1)}, normal(rng, 2, 3, 4, 4)
    y, z = run(model(text, **weights), x)
    ranges = {
        "a": ConvolutionRanges(Range(np.float32([-5, -1, -1]), np.float32([1, 1, 2])), range_of(y)),
        "b": ConvolutionRanges(Range(np.float32([-1, -1, -1]), np.float32([1, 1, 7])), range_of(z)),
    }
    integer = quantize_convolutions(model(text, **weights), ranges)
    counts = kernels(integer, tmp_path)
    assert (counts["QLinearConv"], counts["QuantizeLinear"]) == (2, 1)
    shared, place = Coding.of(-5, 7), Shape((1, 1), (1, 1), (0, 0, 0, 0))
    for found, exact, weight in zip(run(integer, x), (y, z), weights.values(), strict=True):
        expected = integer_convolution(shared.codes(x), weight, None, shared, coding(exact), place)
        assert_codes(found, expected, coding(exact))


def test_a_result_that_several_convolutions_read(tmp_path: Path) -> None:
    """Its steps serve the weights of all: the energies of its readers add up."""
    text = """g (float[N, 4, A, B] x) => (float[N, 5, A, B] y, float[N, 5, A, B] z) {
        h = Conv <pads = [1, 1, 1, 1]> (x, wa, ba)
        b = Conv <pads = [1, 1, 1, 1]> (h, wb)
        c = Conv <pads = [1, 1, 1, 1]> (h, wc)
        y = Identity (b)
        z = Identity (c)
    }"""
    rng = np.random.default_rng(9)
    weights = {
        "wa": two_weights()["wa"],
        "ba": np.float32([9, -0.3, 30, 0.1, 0, 0]),  # the first channel is high, the second low
        "wb": two_weights()["wb"] * np.float32([9, 1, 1, 1, 1, 1])[:, None, None],
        "wc": normal(rng, 5, 6, 3, 3) * np.float32([1, 300, 0.1, 3, 1, 100])[:, None, None],
    }
    x = normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, (y, z) = between(text, weights, x), run(model(text, **weights), x)
    ranges = {
        "h": ConvolutionRanges(channel_range(x), channel_range(h)),
        "b": ConvolutionRanges(channel_range(h), channel_range(y)),
        "c": ConvolutionRanges(channel_range(h), channel_range(z)),
    }
    integer = quantize_convolutions(model(text, **weights), ranges)
    of_h = channel_coding(h, np.concatenate([weights["wb"], weights["wc"]]), 1.0)
    alone = {channel_coding(h, weights[name], 1.0).zero_point for name in ("wb", "wc")}
    assert len({of_h.zero_point, *alone}) == 3  # or the test could not fail
    codes = integer_convolution(coding(x).codes(x), weights["wa"], weights["ba"], coding(x), of_h, SAME)
    for found, exact, name in zip(run(integer, x, False), (y, z), ("wb", "wc"), strict=True):
        expected = integer_convolution(codes.codes, weights[name], None, of_h, coding(exact), SAME)
        assert np.mean(found == coding(exact).floats(expected.codes)) > 0.98
    counts = kernels(integer, tmp_path)
    assert (counts["QLinearConv"], counts["QuantizeLinear"], counts["DequantizeLinear"]) == (3, 1, 2)


@pytest.mark.exact_products
def test_some_of_a_models_convolutions() -> None:
    """A result that a Conv in float reads has one step, and is what its codes stand for."""
    weights, x = two_weights((1,) * 6), normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    for name in ("a", "b"):
        ranges = {name: two_ranges(x, h, y)[name]}
        integer = quantize_convolutions(model(TWO, **weights), ranges)
        onnx.checker.check_model(ir.to_proto(integer), full_check=True)
        convs = {node.name: node for node in integer.graph if node.op_type == "Conv"}
        assert {key: conv.inputs[1].const_value is None for key, conv in convs.items()} == {  # type: ignore[union-attr]
            "a": name == "a", "b": name == "b",
        }  # fmt: skip
        assert ("wa" in integer.graph.initializers, "wb" in integer.graph.initializers) == (name == "b", name == "a")
        assert 0 < np.abs(run(integer, x)[0] - y).max() < 0.03 * np.abs(y).max()


@pytest.mark.exact_products
def test_a_weight_that_two_share() -> None:
    """Each has its codes, in the steps of what it reads; the float weight stays for who else reads it."""
    text = """g (float[N, 4, A, B] x) => (float[N, 4, A, B] y, float[4, 4, 1, 1] z) {
        a = Conv (x, w, b)
        h = Relu (a)
        c = Conv (h, w, b)
        y = Identity (c)
        z = Neg (w)
    }"""
    rng = np.random.default_rng(6)
    weights, x = {"w": normal(rng, 4, 4, 1, 1), "b": normal(rng, 4)}, normal(rng, 2, 4, 5, 5)
    h, y = between(text, weights, x), run(model(text, **weights), x)[0]
    ranges = {"a": ConvolutionRanges(channel_range(x), channel_range(h)),
              "c": ConvolutionRanges(channel_range(h), channel_range(y))}  # fmt: skip
    integer = quantize_convolutions(model(text, **weights), ranges)
    found_y, found_z = run(integer, x)
    np.testing.assert_array_equal(found_z, -weights["w"])
    assert np.abs(found_y - y).max() < 0.03 * np.abs(y).max()
    assert "b" not in integer.graph.initializers


@pytest.mark.exact_products
def test_a_bias_far_beyond_the_weights() -> None:
    """One that would leave int32 in units of its weights' steps; another in one channel alone."""
    rng = np.random.default_rng(7)
    text = """g (float[N, 2, A, B] x) => (float[N, 3, A, B] y) {
        a = Conv (x, w, b)
        y = Identity (a)
    }"""
    weight, bias = normal(rng, 3, 2, 1, 1), np.float32([1e5, -2, 3e-5])
    weight[0] *= np.float32(1e-6)
    x = normal(rng, 2, 2, 4, 4)
    built = model(text, w=weight, b=bias)
    y = run(built, x)[0]
    integer = quantize_convolutions(built, {"a": ranges_of(x, y)})
    found = run(integer, x)[0]
    step = coding(y).step[0]
    assert np.abs(found - y).max() <= 0.6 * step
    stored = integer.graph.initializers["a.bias.codes"].const_value
    assert stored is not None
    assert stored.numpy().dtype == np.int32
    assert np.abs(stored.numpy().astype(np.int64)).max() <= 2**30 + 1


def pair_sums(codes: np.ndarray) -> np.ndarray:
    """The largest sums of products of u8 with two codes side by side, channels last: [out, ..., in] -> [out]."""
    rows = np.moveaxis(codes.astype(np.int64), 1, -1).reshape(len(codes), -1)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    pairs = rows.reshape(len(rows), -1, 2)
    above, below = np.maximum(pairs, 0).sum(-1).max(-1), np.minimum(pairs, 0).sum(-1).min(-1)
    found: np.ndarray = 255 * np.maximum(above, -below)
    return found


@pytest.mark.parametrize("form", ["2-D", "of one place", "groups", "depthwise", "1-D", "3-D"])
def test_in_a_reduced_range_no_pair_of_products_leaves_16_bits(form: str) -> None:
    built, x, weight, _, y = single("Relu", form, True)
    codes = {}
    for reduce_range in (False, True):
        integer = quantize_convolutions(built, {"c": ranges_of(x, y)}, 1.0, reduce_range)
        stored = integer.graph.initializers["c.weight.codes"].const_value
        assert stored is not None
        codes[reduce_range] = stored.numpy()
    assert np.abs(run(integer, x)[0] - y).max() < 0.05 * np.abs(y).max()
    assert pair_sums(codes[True]).max() <= 2**15 - 1
    assert codes[False].shape == codes[True].shape == weight.shape
    if form in ("2-D", "of one place"):  # or the test could not fail
        assert pair_sums(codes[False]).max() > 2**15 - 1


def test_names() -> None:
    """Values that others read keep theirs; all that is new is named after what it belongs to."""
    weights, x = two_weights(), normal(np.random.default_rng(1), 3, 4, 6, 5)
    h, y = between(TWO, weights, x), between(TWO, weights, x, "b")
    integer = quantize_convolutions(model(TWO, **weights), two_ranges(x, h, y))
    nodes = [node.name for node in integer.graph]
    values = [value.name for node in integer.graph for value in node.outputs]
    values += [*integer.graph.initializers, *(value.name for value in integer.graph.inputs)]
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    assert {"a", "b", "y"} <= set(nodes)
    assert {"a.weight.codes", "b.weight.codes", "a.bias.codes", "x/convolution.codes", "h/convolution.codes"} <= set(
        values
    )
    assert [value.name for value in (*integer.graph.inputs, *integer.graph.outputs)] == ["x", "y"]
    result = next(node for node in integer.graph if node.name == "y").inputs[0]
    assert result is not None
    assert result.name == "b"
    assert not {"wa", "wb", "ba", "bb"} & set(integer.graph.initializers)


@pytest.mark.exact_products
def test_a_result_that_a_subgraph_reads() -> None:
    text = """g (float[N, 3, A, B] x, bool t) => (float[N, 3, A, B] y) {
        a = Conv (x, w)
        h = Relu (a)
        s = Neg (h)
        y = If (t) <then_branch = yes () => (float[N, 3, A, B] u) { u = Exp (h) },
                    else_branch = no () => (float[N, 3, A, B] v) { v = Identity (s) }>
    }"""
    rng = np.random.default_rng(8)
    weight, x = normal(rng, 3, 3, 1, 1) * np.float32(0.3), normal(rng, 1, 3, 4, 4)
    h = np.maximum(np.einsum("ncab,oc->noab", x, weight[..., 0, 0]), 0)
    built = model(text, w=weight)
    integer = quantize_convolutions(built, {"a": ranges_of(x, h)})
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    for optimized in (False, True):
        session = session_of(integer, optimized)
        (taken,), (other,) = (session.run(None, {"x": x, "t": np.array(t)}) for t in (True, False))
        np.testing.assert_allclose(np.log(taken), -other, atol=1e-6)
        assert 0 < np.abs(other + h).max() <= 1.01 * coding(h).step[0] + 0.01 * np.abs(h).max()


def test_a_name_that_is_no_convolution() -> None:
    built, x, *_, y = single("Relu", "2-D", True)
    for name in ("h", "other"):
        with pytest.raises(ValueError, match=f"no Conv with a constant weight is named '{name}'"):
            quantize_convolutions(built, {"c": ranges_of(x, y), name: ranges_of(x, y)})
    integer = quantize_convolutions(built, {"c": ranges_of(x, y)})
    with pytest.raises(ValueError, match="no Conv with a constant weight is named 'c'"):
        quantize_convolutions(integer, {"c": ranges_of(x, y)})


def test_without_names_nothing_changes() -> None:
    built, *_ = single("Clip", "groups", True)
    assert ir.to_proto(quantize_convolutions(built, {})).SerializeToString() == ir.to_proto(built).SerializeToString()


@pytest.mark.exact_products
@pytest.mark.parametrize("size", [1e-20, 1e20], ids=["tiny", "huge"])
def test_weights_whose_squares_leave_float32(size: float) -> None:
    """Sizes that go and come back: steps of channels are as near as one step for all."""
    text = TWO.replace(", ba)", ")").replace(", bb)", ")")
    rng = np.random.default_rng(2)
    weights = {"wa": normal(rng, 6, 4, 3, 3) * np.float32(1 / size), "wb": normal(rng, 5, 6, 3, 3) * np.float32(size)}
    x = normal(rng, 3, 4, 6, 5)
    h, y = between(text, weights, x), between(text, weights, x, "b")
    for alpha in (0.0, 1.0):
        integer = quantize_convolutions(model(text, **weights), two_ranges(x, h, y), alpha)
        assert np.abs(run(integer, x)[0] - y).max() < 0.03 * np.abs(y).max()


@pytest.mark.exact_products
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_forms(data: st.DataObject) -> None:
    draw = data.draw
    spatial = draw(st.integers(1, 3), "axes")
    group, per_group, outputs = (draw(st.integers(1, 3), name) for name in ("groups", "channels of one", "outputs"))
    kernel, strides, dilations = (
        tuple(draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial), name))
        for name in ("kernel", "strides", "dilations")
    )
    pads = tuple(draw(st.lists(st.integers(0, 2), min_size=2 * spatial, max_size=2 * spatial), "pads"))
    shape = Shape(strides, dilations, pads, group)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), "seed"))
    size = [(k - 1) * d + 1 + int(rng.integers(0, 3)) for k, d in zip(kernel, dilations, strict=True)]
    x = normal(rng, 2, group * per_group, *size) + np.float32(draw(st.sampled_from([-2, 0, 2]), "shift"))
    weight, bias = normal(rng, group * outputs, per_group, *kernel), normal(rng, group * outputs)
    text = f"""g (float[N, C, {axes(spatial)}] x) => (float[N, D, {axes(spatial)}] y) {{
        c = Conv {shape.attributes()} (x, w, b)
        y = Identity (c)
    }}"""
    built = model(text, w=weight, b=bias)
    y = run(built, x)[0]
    integer = quantize_convolutions(built, {"c": ConvolutionRanges(channel_range(x), channel_range(y))})
    expected = integer_convolution(coding(x).codes(x), weight, bias, coding(x), coding(y), shape)
    for optimized in (False, True):
        assert_codes(run(integer, x, optimized)[0], expected, coding(y))
