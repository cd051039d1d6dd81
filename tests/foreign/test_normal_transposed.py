"""A transposed convolution becomes one whose channels become pixels, and computes the same."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.foreign import _normal_transposed as room
from nextscale.foreign._normal_transposed import write_transposed
from nextscale.foreign.normalize import normalize
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model
from nextscale.foreign.survey import survey
from nextscale.graph_passes.recipe import load_recipe

Floats = NDArray[np.float32]
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture
def any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are written anew, too."""
    monkeypatch.setattr(room, "LEAST_WORK", 0)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(body: str, x: str, **arrays: NDArray[np.generic]) -> onnx.ModelProto:
    """Of x, whose type is given, to y, with nodes named after what they give."""
    graph = parser.parse_graph(
        f"g (float[{x}] x) => (float[{', '.join(f'y{i}' for i in range(x.count(',') + 1))}] y) {{ {body} }}"
    )
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items() if name in read)
    for node in graph.node:
        node.name = node.output[0]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def session(proto: onnx.ModelProto, written: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if written is not None:
        options.optimized_model_filepath = str(written)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, x: Floats) -> Floats:
    found: Floats = session(proto).run(None, {"x": x})[0]
    return found


def oracle(x: NDArray, w: NDArray, strides: list[int], groups: int = 1) -> NDArray[np.float64]:
    """Without pads: each number of x adds its kernel where it stands.

    Args:
        x: [N, C_in, ...].
        w: [C_in, C_out / groups, ...].
    """
    sizes, kernel = x.shape[2:], w.shape[2:]
    whole = [s * (n - 1) + k for s, n, k in zip(strides, sizes, kernel, strict=True)]
    split = x.astype(np.float64).reshape(len(x), groups, -1, *sizes)
    weights = w.astype(np.float64).reshape(groups, -1, *w.shape[1:])
    y = np.zeros((len(x), groups, w.shape[1], *whole))
    for tap in itertools.product(*map(range, kernel)):
        part = np.einsum("ngi...,gio->ngo...", split, weights[(slice(None),) * 3 + tap])
        y[(..., *(slice(t, t + s * (n - 1) + 1, s) for t, s, n in zip(tap, strides, sizes, strict=True)))] += part
    return y.reshape(len(x), -1, *whole)


def cropped(y: NDArray, pads: list[int], more: list[int]) -> NDArray:
    """With numbers cut off at the ends, or zeros put behind."""
    rank = y.ndim - 2
    y = np.pad(y, [(0, 0), (0, 0), *((0, m) for m in more)])
    return y[(..., *(slice(pads[i], y.shape[2 + i] - pads[rank + i]) for i in range(rank)))]


# Shape of x without the batch, of the weight, strides, and further attributes.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[int], dict[str, list[int] | int]]] = {
    "kernel as stride": ((3, 5, 4), (3, 2, 2, 2), [2, 2], {}),
    "kernel as stride, 4": ((2, 3, 3), (2, 3, 4, 4), [4, 4], {}),
    "kernel of two strides": ((3, 5, 4), (3, 2, 4, 4), [2, 2], {"pads": [1, 1, 1, 1]}),
    "kernel of 3, stride of 2": ((3, 5, 4), (3, 2, 3, 3), [2, 2], {"pads": [1] * 4, "output_padding": [1, 1]}),
    "other pads at each end": ((3, 5, 4), (3, 2, 5, 4), [2, 2], {"pads": [2, 0, 1, 3]}),
    "pads of a stride and more": ((2, 5, 5), (2, 2, 8, 7), [2, 2], {"pads": [3, 4, 5, 2]}),
    "more at the end than the kernel reaches": ((2, 4, 4), (2, 2, 2, 2), [3, 3], {"output_padding": [2, 1]}),
    "kernel below the stride": ((2, 4, 4), (2, 2, 1, 2), [3, 3], {}),
    "stride of 1": ((2, 4, 5), (2, 3, 3, 3), [1, 1], {"pads": [1, 1, 1, 1]}),
    "oblong": ((2, 4, 5), (2, 3, 4, 3), [2, 3], {"pads": [1, 0, 1, 0]}),
    "groups": ((4, 4, 5), (4, 3, 4, 4), [2, 2], {"pads": [1] * 4, "group": 2}),
    "depthwise": ((3, 4, 5), (3, 1, 4, 4), [2, 2], {"pads": [1] * 4, "group": 3}),
    "1-D": ((3, 7), (3, 2, 4), [2], {"pads": [1, 1]}),
    "1-D, kernel as stride, groups": ((4, 7), (4, 2, 3), [3], {"group": 2}),
    "1-D, long": ((2, 5), (2, 2, 16), [8], {"pads": [4, 4], "output_padding": [3]}),
    "3-D": ((2, 3, 4, 2), (2, 3, 3, 4, 2), [2, 2, 2], {"pads": [1, 1, 0, 0, 1, 0]}),
    "3-D, a stride of its own for each": ((2, 3, 2, 2), (2, 2, 2, 1, 4), [2, 1, 3], {}),
}


def written(attributes: dict[str, list[int] | int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in attributes.items())


def assert_same(
    size: tuple[int, ...], shape: tuple[int, ...], strides: list[int], further: dict[str, list[int] | int], bias: bool
) -> onnx.ModelProto:
    """Written anew, it gives what ONNX Runtime's ConvTranspose and the sum by hand do; returns it."""
    rank, groups = len(strides), int(str(further.get("group", 1)))
    x, w, b = normal(2, *size, seed=1), normal(*shape), normal(shape[1] * groups, seed=2)
    how = written({"strides": strides, **further})
    body = f"c = ConvTranspose <{how}> (x, w{', b' if bias else ''})\n y = Tanh (c)"
    proto = model(body.replace("y = Tanh (c)", "y = Neg (c)"), f"N, {str(size)[1:-1]}", w=w, b=b)
    onnx.checker.check_model(proto, full_check=True)
    built = ir.from_proto(proto)
    assert write_transposed(built) == 1
    assert write_transposed(built) == 0
    found = ir.to_proto(built)
    onnx.checker.check_model(found, full_check=True)
    assert found.graph.node[0].op_type == "Conv"
    assert found.graph.node[0].name == "c"
    y = run(found, x)
    pads, more = (
        list(np.ravel(further.get(name, [0] * n))) for name, n in (("pads", 2 * rank), ("output_padding", rank))
    )
    exact, most = (cropped(oracle(*of, strides, groups), pads, more) for of in ((x, w), (np.abs(x), np.abs(w))))
    added = b.reshape(-1, *[1] * rank) if bias else np.float32(0)
    # A sum of n products is off by n epsilon times the sum of their sizes.
    bound = (w[:, 0].size + 1) * EPSILON * (most + np.abs(added)) + EPSILON
    assert y.shape == exact.shape
    assert (np.abs(y + (exact + added)) <= bound).all()
    assert (np.abs(y - run(proto, x)) <= 2 * bound).all()
    return found


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_same(name: str, bias: bool) -> None:
    assert_same(*CASES[name], bias)


@pytest.mark.usefixtures("any_work")
@settings(max_examples=40, deadline=None, print_blob=True, derandomize=True)
@given(st.data())
def test_random_shapes(data: st.DataObject) -> None:
    rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))

    def some(least: int, most: int, count: int = rank) -> list[int]:
        return data.draw(st.lists(st.integers(least, most), min_size=count, max_size=count))

    strides, kernel, size = some(1, 3), some(1, 5), some(1, 4)
    more = [min(m, s - 1) for m, s in zip(some(0, 2), strides, strict=True)]
    pads = [min(pad, kernel[i % rank] - 1) for i, pad in enumerate(some(0, 4, 2 * rank))]
    made = [s * (n - 1) + k + m for s, n, k, m in zip(strides, size, kernel, more, strict=True)]
    assume(all(length > pads[i] + pads[rank + i] for i, length in enumerate(made)))
    further: dict[str, list[int] | int] = {"pads": pads, "output_padding": more, "group": groups}
    assert_same((2 * groups, *size), (2 * groups, 3, *kernel), strides, further, bias=data.draw(st.booleans()))


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(
    ("name", "operators", "kernel"),
    [
        ("kernel as stride", ["DepthToSpace"], [8, 3, 1, 1]),
        ("kernel of two strides", ["DepthToSpace", "Slice"], [8, 3, 2, 2]),
        ("stride of 1", [], [3, 2, 3, 3]),
        ("1-D", ["Reshape", "Transpose", "Reshape", "Slice"], [4, 3, 2]),
        ("3-D, a stride of its own for each", ["Reshape", "Transpose", "Reshape", "Slice"], [12, 2, 1, 1, 2]),
    ],
)
def test_its_form(name: str, operators: list[str], kernel: list[int]) -> None:
    graph = assert_same(*CASES[name], bias=True).graph
    assert [node.op_type for node in graph.node] == ["Conv", *operators, "Neg"]
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == graph.node[0].input[1])
    assert list(weight.dims) == kernel


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(
    ("x", "shape"), [("N, 3, A, B", (3, 2, 4, 4)), ("N, 3, A", (3, 2, 4)), ("N, 3, A, 5, 4", (3, 2, 2, 2, 2))]
)
def test_sizes_that_are_unknown(x: str, shape: tuple[int, ...]) -> None:
    rank, w = len(shape) - 2, normal(*shape)
    body = f"c = ConvTranspose <strides = {[2] * rank}> (x, w)\n y = Neg (c)"
    proto = model(body, x, w=w)
    built = ir.from_proto(proto)
    assert write_transposed(built) == 1
    for first in (1, 4):
        given = normal(first, 3, first + 2, *(5, 4)[: rank - 1], seed=first)
        np.testing.assert_allclose(run(ir.to_proto(built), given), run(proto, given), rtol=0, atol=1e-5)


BEHIND = {
    "a norm and Relu": ("n = BatchNormalization (c, s, m, m, v)\n r = Relu (n)", ["BatchNormalization", "Relu"]),
    "Clip and Relu": ("n = Clip (c, , six)\n r = Relu (n)", ["Clip", "Relu"]),
    "a norm behind Tanh": ("n = Tanh (c)\n r = BatchNormalization (n, s, m, m, v)", []),
    "a norm for training": ("n, a, b2 = BatchNormalization <training_mode = 1> (c, s, m, m, v)\n r = Relu (n)", []),
    "a norm whose factors are computed": (
        "l = ReduceMax <keepdims = 0> (x)\n o = Mul (s, l)\n n = BatchNormalization (c, o, m, m, v)\n r = Relu (n)",
        [],
    ),
    "a Clip whose end is computed": ("o = ReduceMean <keepdims = 0> (x)\n n = Clip (c, , o)\n r = Relu (n)", []),
    "Relu that another reads beside": ("n = Relu (c)\n r = Sub (n, c)", []),
}


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("name", BEHIND)
def test_what_comes_behind_it(name: str) -> None:
    """What does with a number what its channel asks for comes before the pixels; so a norm can go into the Conv."""
    body, forward = BEHIND[name]
    constants = {"s": normal(2, seed=3), "m": normal(2, seed=4), "v": np.square(normal(2, seed=5)) + np.float32(0.2)}
    text = f"c = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)\n {body}\n y = Neg (r)"
    proto = model(text, "N, 3, 5, 4", w=normal(3, 2, 4, 4), b=normal(2, seed=6), six=np.float32(0.6), **constants)
    onnx.checker.check_model(proto)
    built = ir.from_proto(proto)
    assert write_transposed(built) == 1
    found, x = ir.to_proto(built), normal(2, 3, 5, 4, seed=1)
    onnx.checker.check_model(found, full_check=True)
    operators = [node.op_type for node in found.graph.node]
    place = operators.index("Conv") + 1
    assert operators[place : operators.index("DepthToSpace")] == forward
    np.testing.assert_allclose(run(found, x), run(proto, x), rtol=0, atol=1e-4)
    if "training" not in name:
        normalized = normalize(ir.from_proto(proto))
        assert "1 ConvTranspose became Conv" in normalized.notes
        assert ("BatchNormalization" in forward) == ("1 node went into a convolution" in normalized.notes)
        np.testing.assert_allclose(run(ir.to_proto(normalized.model), x), run(proto, x), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("any_work")
def test_two_that_share_a_weight() -> None:
    text = """c = ConvTranspose <strides = [2, 2]> (x, w, b)\n d = ConvTranspose <strides = [1, 1]> (x, w, b)
        n = GlobalAveragePool (d)\n y = Sub (c, n)"""
    proto = model(text, "N, 3, 5, 4", w=normal(3, 2, 2, 2), b=normal(2))
    built = ir.from_proto(proto)
    assert write_transposed(built) == 2
    x = normal(2, 3, 5, 4, seed=1)
    np.testing.assert_allclose(run(ir.to_proto(built), x), run(proto, x), rtol=0, atol=1e-5)


OUTPUT = "its result is an output of the model, which 8 bits would be too few for"
# Attributes, the shape of x, what stands before and behind, and the reason.
REFUSED = {
    "SAME_UPPER": (
        'strides = [2, 2], auto_pad = "SAME_UPPER"', "N, 16, 6, 6", "y = Tanh (c)", "its auto_pad is SAME_UPPER",
    ),
    "an output shape": (
        "strides = [2, 2], output_shape = [13, 13]", "N, 16, 6, 6", "y = Tanh (c)", "its pads follow from output_shape",
    ),
    "dilated": ("strides = [2, 2], dilations = [2, 2]", "N, 16, 6, 6", "y = Tanh (c)", "it is dilated"),
    "large pads": (
        "strides = [2, 2], pads = [4, 4, 0, 0]", "N, 16, 6, 6", "y = Tanh (c)",
        "its pads are negative, or cut off more than its kernel",
    ),
    "unknown sizes": (
        "strides = [2, 3]", "N, 16, A, B", "y = Tanh (c)",
        "it has 2 axes, not all of one stride or not two, and several are of unknown size",
    ),
    "little work": (
        "strides = [2, 2], group = 8", "N, 16, 6, 6", "y = Tanh (c)",
        "7.92 multiplications for each number that it reads or gives: less work than to move these",
    ),
    "an output": ("strides = [2, 2]", "N, 16, 6, 6", "y = Identity (c)", OUTPUT),
    "an output behind Relu": ("strides = [2, 2]", "N, 16, 6, 6", "y = Relu (c)", OUTPUT),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_has_a_reason(name: str) -> None:
    how, x, behind, reason = REFUSED[name]
    proto = model(f"c = ConvTranspose <{how}> (x, w)\n {behind}", x, w=normal(16, 48, 4, 4))
    found = normalize(ir.from_proto(proto))
    assert "ConvTranspose" in [node.op_type for node in found.model.graph]
    (item,) = survey(found.model).found
    assert (item.name, item.kind) == ("c", "convolution")
    assert item.refused == f"ConvTranspose that became no Conv: {reason}"


@pytest.mark.parametrize("computed", ["weight", "bias"])
def test_what_is_computed(computed: str) -> None:
    made = (
        "v = Abs (w)\n c = ConvTranspose (x, v, b)"
        if computed == "weight"
        else "v = Abs (b)\n c = ConvTranspose (x, w, v)"
    )
    proto = model(f"{made}\n y = Tanh (c)", "N, 16, 6, 6", w=normal(16, 48, 4, 4), b=normal(48))
    assert write_transposed(ir.from_proto(proto)) == 0


def test_padding_of_none_by_its_name() -> None:
    how = 'strides = [2, 2], auto_pad = "VALID"'
    proto = model(f"c = ConvTranspose <{how}> (x, w)\n y = Tanh (c)", "N, 16, 6, 6", w=normal(16, 48, 4, 4))
    built, x = ir.from_proto(proto), normal(1, 16, 6, 6, seed=1)
    assert write_transposed(built) == 1
    np.testing.assert_allclose(run(ir.to_proto(built), x), run(proto, x), rtol=0, atol=1e-5)


@pytest.mark.exact_products
@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(
    ("x", "kernel", "moves"),
    [
        ([8, 8, 8], [4, 4], {"DepthToSpace": 2, "Slice": 2}),
        ([8, 8, 8], [2, 2], {"DepthToSpace": 2}),
        ([8, 16], [4], {"Reshape": 4, "Slice": 2}),
    ],
    ids=["4", "2", "1-D"],
)
def test_integers_become_pixels(x: list[int], kernel: list[int], moves: dict[str, int], tmp_path: Path) -> None:
    """From the first convolution's input to the last one's output, ONNX Runtime has codes alone."""
    rank, pads = len(kernel), [(kernel[0] - 2) // 2] * 2 * len(kernel)
    text = f"""i = Tanh (x)
        c = ConvTranspose <strides = {[2] * rank}, pads = {pads}> (i, w, b)
        r = Relu (c)
        d = ConvTranspose <strides = {[2] * rank}, pads = {pads}> (r, v)
        y = Tanh (d)"""
    scale = np.float32(0.1)
    weights = {
        "w": scale * normal(8, 48, *kernel),
        "v": scale * normal(48, 40, *kernel, seed=2),
        "b": scale * normal(48),
    }
    proto = model(text, f"N, {str(x)[1:-1]}", **weights)
    samples = normal(4, *x, seed=3)
    integer, report = quantize_model(ir.from_proto(proto), {"x": samples}, "static-w8a8", QuantizeOptions(rounds=0))
    assert [(line.name, line.kernels) for line in report.lines] == [("c", ("QLinearConv",)), ("d", ("QLinearConv",))]
    found = ir.to_proto(integer)
    onnx.checker.check_model(found, full_check=True)
    optimized = session(found, tmp_path / "optimized.onnx")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 1)
    assert {name: operators[name] for name in moves} == moves
    exact, y = run(proto, samples), optimized.run(None, {"x": samples})[0]
    assert np.sqrt(np.square(y - exact).mean() / np.square(exact).mean()) < 0.03


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("left", ["c", "d"])
def test_one_that_a_recipe_leaves_in_float(left: str) -> None:
    """Codes end where the pixels of the other do."""
    text = """c = ConvTranspose <strides = [2, 2]> (x, w, b)
        d = ConvTranspose <strides = [2, 2]> (c, v)
        y = Tanh (d)"""
    proto = model(text, "N, 8, 4, 4", w=normal(8, 48, 2, 2), v=normal(48, 8, 2, 2, seed=2) / 48, b=normal(48))
    samples = normal(4, 8, 4, 4, seed=3)
    recipe = replace(load_recipe("static-w8a8"), layers={left: "float"})
    integer, report = quantize_model(ir.from_proto(proto), {"x": samples}, recipe, QuantizeOptions(rounds=0))
    assert [line.name for line in report.taken] == [name for name in "cd" if name != left]
    assert report.fallen == []
    found = ir.to_proto(integer)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_allclose(run(found, samples), run(proto, samples), rtol=0, atol=0.1)
