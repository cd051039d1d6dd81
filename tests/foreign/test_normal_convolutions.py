"""Factors and summands of channels go into the convolution before them, where that is what they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.foreign._normal_convolutions import fold_into_convolutions
from nextscale.foreign.normalize import normalize

Arrays = dict[str, NDArray[np.generic]]
OUT, IN, SIZE = 4, 3, 6


def model(text: str, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    graph = parser.parse_graph(text)
    read = {name for node in graph.node for name in node.input}
    read |= {name for node in graph.node for a in node.attribute for inner in a.g.node for name in inner.input}
    for name, array in arrays.items():
        if name in read:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.output[0]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto: onnx.ModelProto, feeds: Arrays) -> list[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = normal(2, IN, SIZE, SIZE, seed=1)
WEIGHTS: Arrays = {
    "w": normal(OUT, IN, 3, 3),
    "b": normal(OUT, seed=2),
    "scale": normal(OUT, seed=3),
    "shift": normal(OUT, seed=4),
    "mean": normal(OUT, seed=5),
    "variance": np.square(normal(OUT, seed=6)) + np.float32(0.1),
    "number": np.float32(-2.5),
    "one": np.float32([0.75]),
    "ones": np.full((1, 1, 1, 1), 1.5, np.float32),
    "channel": normal(OUT, 1, 1, seed=7),
    "channels": normal(1, OUT, 1, 1, seed=8),
}


def around(body: str, bias: bool = True) -> str:
    """The graph of a Conv c, a body that makes t of it, and a last operator that keeps t from being the output."""
    return f"""g (float[N, {IN}, A, B] x) => (float[N, {OUT}, A, B] y) {{
        c = Conv (x, w{", b" if bias else ""})
        {body}
        y = Tanh (t)
    }}"""


BODIES: dict[str, tuple[str, int]] = {
    "BatchNormalization": ("t = BatchNormalization (c, scale, shift, mean, variance)", 1),
    "BatchNormalization, epsilon": ("t = BatchNormalization <epsilon = 0.5> (c, scale, shift, mean, variance)", 1),
    "Mul": ("t = Mul (c, channel)", 1),
    "Mul, on the left": ("t = Mul (channels, c)", 1),
    "Mul, a number": ("t = Mul (c, number)", 1),
    "Mul, one number of four axes": ("t = Mul (ones, c)", 1),
    "Div": ("t = Div (c, channels)", 1),
    "Div, a number": ("t = Div (c, one)", 1),
    "Add": ("t = Add (c, channel)", 1),
    "Add, on the left": ("t = Add (number, c)", 1),
    "Sub": ("t = Sub (c, channel)", 1),
    "Sub, on the left": ("t = Sub (channel, c)", 1),
    "Sub, a number on the left": ("t = Sub (number, c)", 1),
    "a chain": (
        """m = Mul (c, channel)
        a = Add (shift4, m)
        n = BatchNormalization (a, scale, shift, mean, variance)
        d = Div (n, number)
        t = Sub (one, d)""",
        5,
    ),
    "a chain with a Relu in it": ("m = Mul (c, channel)\n r = Relu (m)\n t = Add (r, channel)", 1),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", BODIES)
def test_what_goes_into_the_convolution(name: str, bias: bool) -> None:
    body, count = BODIES[name]
    proto = model(around(body, bias), **WEIGHTS, shift4=normal(1, OUT, 1, 1, seed=9))
    built = ir.from_proto(proto)
    nodes = len(built.graph)
    assert fold_into_convolutions(built) == count
    assert len(built.graph) == nodes - count
    assert built.graph[0].op_type == "Conv"
    found = ir.to_proto(built)
    onnx.checker.check_model(found, full_check=True)
    # Products of up to 27 numbers, each rounded otherwise than before.
    np.testing.assert_allclose(run(found, {"x": X})[0], run(proto, {"x": X})[0], rtol=0, atol=1e-5)
    assert fold_into_convolutions(built) == 0
    read = {str(value.name) for node in built.graph for value in node.inputs if value is not None}
    assert {"w", "b"} & set(built.graph.initializers) == set()
    assert {"w.folded", "b.folded" if bias else "bias.folded"} <= read or count > 1


def float64_batch_norm(c: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    scale, shift, mean, variance = (
        np.asarray(WEIGHTS[name], np.float64)[:, None, None] for name in ("scale", "shift", "mean", "variance")
    )
    found: NDArray[np.float64] = (c - mean) / np.sqrt(variance + epsilon) * scale + shift
    return found


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_the_numbers_of_batch_normalization(epsilon: float) -> None:
    """The constants themselves, by its definition: y = (c - mean) / sqrt(variance + epsilon) scale + shift."""
    built = ir.from_proto(model(around(
        f"t = BatchNormalization <epsilon = {epsilon}> (c, scale, shift, mean, variance)"), **WEIGHTS))  # fmt: skip
    assert fold_into_convolutions(built) == 1
    conv = built.graph[0]
    weight, bias = (conv.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
    at_zero = float64_batch_norm(np.asarray(WEIGHTS["b"], np.float64)[:, None, None], epsilon).ravel()
    np.testing.assert_allclose(bias, at_zero, rtol=1e-6, atol=1e-6)
    gain = np.asarray(WEIGHTS["scale"]) / np.sqrt(np.asarray(WEIGHTS["variance"], np.float64) + epsilon)
    np.testing.assert_allclose(weight, np.asarray(WEIGHTS["w"]) * gain[:, None, None, None], rtol=1e-6)
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)


STAYS = {
    "a row of the last axis": "t = Add (c, row)",
    "a row as long as there are channels": "t = Mul (c, fours)",
    "a column": "t = Mul (c, column)",
    "a picture": "t = Add (c, picture)",
    "more axes than the convolution": "f = Add (c, five)\n t = Squeeze (f, axis)",
    "a batch of numbers": "t = Mul (c, batch)",
    "a number over": "t = Div (number, c)",
    "a division by zero": "t = Div (c, zeros)",
    "of integers": "i = Cast <to = 6> (c)\n j = Add (i, integer)\n t = Cast <to = 1> (j)",
    "a computed factor": "m = ReduceMax <keepdims = 0> (x)\n t = Mul (c, m)",
    "itself": "t = Mul (c, c)",
    "another reader": "m = Mul (c, channel)\n t = Add (m, c)",
    "Pow": "t = Pow (c, number)",
    "com.microsoft's": "t = com.microsoft.Mul (c, number)",
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    further: Arrays = {
        "row": normal(1, 1, 1, 4), "fours": normal(4), "column": normal(4, 1), "picture": normal(OUT, 4, 4),
        "five": normal(1, 1, OUT, 1, 1), "axis": np.array([0]), "batch": normal(2, 1, 1, 1),
        "zeros": np.float32([1, 0, 1, 1]).reshape(OUT, 1, 1), "integer": np.int32(3),
    }  # fmt: skip
    built = ir.from_proto(model(around(STAYS[name]), **WEIGHTS, **further))
    before = ir.to_proto(built).SerializeToString()
    assert fold_into_convolutions(built) == 0
    assert ir.to_proto(built).SerializeToString() == before


def test_a_convolution_of_one_channel_that_becomes_several() -> None:
    """The numbers of a row of channels make as many of its one."""
    text = """g (float[N, 3, A, B] x) => (float[N, 4, A, B] y) {
        c = Conv (x, w)
        t = Mul (c, channels)
        y = Tanh (t)
    }"""
    built = ir.from_proto(model(text, **{**WEIGHTS, "w": normal(1, IN, 3, 3)}))
    assert fold_into_convolutions(built) == 0


TRAINING = """g (float[N, 3, A, B] x) => (float[N, 4, A, B] y) {
    c = Conv (x, w)
    t, m, v = BatchNormalization <training_mode = 1> (c, scale, shift, mean, variance)
    y = Tanh (t)
}"""
OUTPUTS = {
    "the convolution's result": ("c", "t = Mul (c, channel)"),
    "what is behind it": ("t", "t = Mul (c, channel)"),
}


def test_batch_normalization_for_training_stays() -> None:
    built = ir.from_proto(model(TRAINING, **WEIGHTS))
    assert fold_into_convolutions(built) == 0
    assert [node.op_type for node in built.graph] == ["Conv", "BatchNormalization", "Tanh"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_the_graph_keep_what_they_are(name: str) -> None:
    output, body = OUTPUTS[name]
    proto = model(around(body), **WEIGHTS)
    proto.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", OUT, "A", "B"]))
    built = ir.from_proto(proto)
    assert fold_into_convolutions(built) == 0
    assert [value.name for value in built.graph.outputs] == ["y", output]


def test_weights_that_others_read_stay_for_them() -> None:
    """Of two convolutions of one weight and bias, each has a weight of its own then."""
    text = f"""g (float[N, {IN}, A, B] x) => (float[N, {OUT}, A, B] y, float[N, {OUT}, A, B] z, float[{OUT}] u) {{
        c = Conv (x, w, b)
        t = Mul (c, channel)
        d = Conv (x, w, b)
        s = Add (d, number)
        y = Tanh (t)
        z = Tanh (s)
        u = Neg (b)
    }}"""
    proto = model(text, **WEIGHTS)
    built = ir.from_proto(proto)
    assert fold_into_convolutions(built) == 2
    found = ir.to_proto(built)
    onnx.checker.check_model(found, full_check=True)
    for given_back, expected in zip(run(found, {"x": X}), run(proto, {"x": X}), strict=True):
        np.testing.assert_allclose(given_back, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(run(found, {"x": X})[2], -np.asarray(WEIGHTS["b"]))


def test_names_that_the_model_has_stay_its_own() -> None:
    text = around("m = Mul (c, channel)\n t = Add (m, taken)")
    proto = model(text, **WEIGHTS, taken=normal(1, 1, 1, 4))
    for holder in (*proto.graph.initializer, *proto.graph.node):
        if holder.name == "taken":
            holder.name = "w.folded"
    for node in proto.graph.node:
        node.input[:] = ["w.folded" if name == "taken" else name for name in node.input]
    built = ir.from_proto(proto)
    assert fold_into_convolutions(built) == 1
    assert built.graph[0].inputs[1].name == "w.folded.1"  # type: ignore[union-attr]
    np.testing.assert_allclose(run(ir.to_proto(built), {"x": X})[0], run(proto, {"x": X})[0], rtol=0, atol=1e-5)


UNFOLDABLE: dict[str, tuple[str, Arrays]] = {
    "of a negative variance": (
        "t = BatchNormalization (c, scale, shift, mean, variance)", {"variance": np.full(OUT, -1, np.float32)},
    ),
    "of no variance": (
        "t = BatchNormalization <epsilon = 0.0> (c, scale, shift, mean, variance)",
        {"variance": np.zeros(OUT, np.float32)},
    ),
    "of an infinite factor": ("t = Mul (c, number)", {"number": np.float32(np.inf)}),
    "of a summand that is no number": ("t = Add (c, number)", {"number": np.float32(np.nan)}),
    "of a product beyond float32": ("t = Mul (c, number)", {"w": normal(OUT, IN, 3, 3) * np.float32(1e15),
                                                           "number": np.float32(1e25)}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_constants_that_would_not_be_finite(name: str) -> None:
    """Nothing is lost: the products of zeros and infinities, say, are the same as before."""
    body, changed = UNFOLDABLE[name]
    proto = model(around(body), **{**WEIGHTS, **changed})
    found = ir.to_proto(normalize(ir.from_proto(proto)).model)
    for x in (X, np.zeros_like(X), X * np.float32(1e-20)):
        np.testing.assert_allclose(run(found, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.booleans(), st.integers(0, 3)), max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_random_chains(spatial: int, group: int, steps: list[tuple[str, bool, int]], seed: int) -> None:
    """Of one to three axes: all goes into the convolution, and the numbers stay."""
    rng = np.random.default_rng(seed)
    outputs = 2 * group
    arrays: Arrays = {"w": rng.normal(size=(outputs, 2, *[2] * spatial)).astype(np.float32)}
    lines, last = [f"c = Conv <group = {group}> (x, w)"], "c"
    for i, (op, left, kind) in enumerate(steps):
        shape = [(), (1,), (outputs, *[1] * spatial), (1, outputs, *[1] * spatial)][kind]
        arrays[f"k{i}"] = (rng.uniform(0.5, 2, shape) * rng.choice([-1, 1])).astype(np.float32)
        operands = (f"k{i}", last) if left and op != "Div" else (last, f"k{i}")
        lines.append(f"t{i} = {op} ({', '.join(operands)})")
        last = f"t{i}"
    axes = ", ".join("ABC"[:spatial])
    ends = f"(float[N, {2 * group}, {axes}] x) => (float[N, {outputs}, {axes}] y)"
    text = f"g {ends} {{ {' '.join(lines)} y = Tanh ({last}) }}"
    proto = model(text, **arrays)
    built = ir.from_proto(proto)
    assert fold_into_convolutions(built) == len(steps)
    x = rng.normal(size=(2, 2 * group, *[4] * spatial)).astype(np.float32)
    np.testing.assert_allclose(run(ir.to_proto(built), {"x": x})[0], run(proto, {"x": x})[0], rtol=0, atol=3e-4)
    assert {node.op_type for node in built.graph} == {"Conv", "Tanh"}
