"""Models of old opsets and odd forms, normalized: the same numbers, in the one form that the passes know."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

from nextscale.foreign._opset import CHANGES, NEWEST, OLDEST, OPSET, SOFTMAXES
from nextscale.foreign.normalize import Normalized, normalize
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.runtime._errors import NextscaleError

from .block_model import block_proto

Arrays = dict[str, NDArray[np.generic]]
SIZES = {"B": 2, "T": 5}


def parse(text: str, opset: int, weights: Arrays | None = None, ir_version: int = 7) -> onnx.ModelProto:
    """A model whose graph, and functions behind it, are `text`; weights are initializers."""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1, "local" : 1]>'
    model = parser.parse_model(f"{head}\n{text}")
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def draw(*shape: int, seed: int = 0, dtype: type = np.float32) -> NDArray[np.generic]:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> Arrays:
    rng, weights = np.random.default_rng(seed), {tensor.name for tensor in model.graph.initializer}
    feeds: Arrays = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [SIZES.get(d.dim_param, 3) if d.dim_param else d.dim_value for d in kind.shape.dim]
        if value.name in weights:
            continue
        if dtype == np.bool_ or np.issubdtype(dtype, np.integer):
            feeds[value.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            feeds[value.name] = rng.normal(size=shape).astype(dtype)
    return feeds


def run(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_close(found: list[NDArray[np.generic]], expected: list[NDArray[np.generic]], tolerance: float) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        largest = max(1e-6, float(np.abs(b.astype(np.float64)).max(initial=0)))
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=tolerance * largest)


def assert_well_formed(model: ir.Model, opset: int = OPSET) -> None:
    assert dict(model.opset_imports)[""] == opset
    assert not model.functions
    values = {value for graph in model.graphs() for node in graph for value in node.outputs}
    values |= {value for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    for names in ([value.name for value in values], [node.name for node in model.graph.all_nodes()]):
        assert all(names)
        assert len(set(names)) == len(names)
    for node in model.graph.all_nodes():
        assert node.op_type != "Constant" or node.outputs[0].is_graph_output()
    for graph in model.graphs():
        assert graph is model.graph or not graph.initializers or any(v.is_initializer() for v in graph.outputs)


def signature(model: onnx.ModelProto) -> list[bytes]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return [value.SerializeToString(deterministic=True) for value in (*inputs, *model.graph.output)]


def check(model: onnx.ModelProto, opset: int = OPSET, tolerance: float = 1e-5, checked: bool = True) -> Normalized:
    """Normalize the model and compare it with what it was; also, what is normalized doesn't change again."""
    original = ir.from_proto(model)
    before = ir.to_proto(original).SerializeToString(deterministic=True)
    normalized = normalize(original)
    assert ir.to_proto(original).SerializeToString(deterministic=True) == before
    proto = ir.to_proto(normalized.model)
    assert_well_formed(normalized.model, opset)
    assert signature(proto) == signature(model)
    if checked:
        onnx.checker.check_model(proto, full_check=True)
    feeds, named = feeds_of(model), copy.deepcopy(model)
    for i, node in enumerate(named.graph.node):  # ONNX Runtime wants names that differ.
        node.name = f"{i}"
    assert_close(run(proto, feeds), run(named, feeds), tolerance)
    again = normalize(normalized.model)
    assert not [note for note in again.notes if "stays" not in note]
    assert ir.to_proto(again.model).SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    return normalized


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def changes(normalized: Normalized) -> list[str]:
    return [note for note in normalized.notes if "got a name" not in note and "got names" not in note]


ATTENTION = """g (float[B,2,T,4] q, float[B,2,4,T] k, float[B,2,T,4] v) => (float[B,2,T,4] y) {{
    s = MatMul(q, k)
    c = Constant<value_float: float = 0.5>()
    m = Mul(s, c)
    w = Softmax{axis}(m)
    y = MatMul(w, v)
}}"""


def attention(opset: int, axis: str) -> onnx.ModelProto:
    scale = "Constant<value: tensor = float {0.5}>" if opset < 12 else "Constant<value_float: float = 0.5>"
    return parse(ATTENTION.format(axis=axis).replace("Constant<value_float: float = 0.5>", scale), opset)


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 18, 20, 21])
def test_attention_over_the_last_axis_is_found_at_every_opset(opset: int) -> None:
    normalized = check(attention(opset, "<axis: int = 3>"))
    (pattern,) = attention_patterns(normalized.model.graph)
    assert pattern.rank == 4
    assert operators(normalized.model) == ["MatMul", "Mul", "Softmax", "MatMul"]
    assert changes(normalized) == ([f"opset {opset} to 21"] if opset != 21 else [])


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", ["", "<axis: int = 0>", "<axis: int = 1>", "<axis: int = 2>", "<axis: int = -1>"])
def test_softmax_over_several_axes_keeps_its_meaning(kind: str, axis: str) -> None:
    normalized = check(parse(f"g (float[B,3,T] x) => (float[B,3,T] y) {{ y = {kind}{axis}(x) }}", 11))
    last = axis in ("<axis: int = 2>", "<axis: int = -1>")
    assert operators(normalized.model) == ([kind] if last else ["Shape", "Flatten", kind, "Reshape"])
    first = axis.removeprefix("<axis: int = ").removesuffix(">") or "1"
    line = f"{kind} {kind} of opset 11 works on axes {first} and later of 3 axes together"
    assert changes(normalized) == ["opset 11 to 21"] + ([] if last else [line])


def test_softmax_of_one_long_axis_stays_one_node() -> None:
    normalized = check(parse("g (float[B,3,1,1] x) => (float[B,3,1,1] y) { y = Softmax(x) }", 11))
    assert operators(normalized.model) == ["Softmax"]


def test_softmax_of_unknown_rank_keeps_its_meaning() -> None:
    text = "g (float[B,3,T] x, int64[R] s) => (float y) { r = Reshape(x, s)  y = Softmax<axis: int = -1>(r) }"
    model = parse(text, 12)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    normalized = normalize(ir.from_proto(model))
    feeds = {"x": draw(2, 3, 5), "s": np.array([6, 5])}
    assert_close(run(ir.to_proto(normalized.model), feeds), run(model, feeds), 1e-5)
    assert "Flatten" in operators(normalized.model)
    assert any("unknown number of axes" in note for note in normalized.notes)


def test_a_wrong_shape_in_the_file_is_not_believed() -> None:
    """The file says that the Softmax over axis 1 has two axes; it has three."""
    text = "g (float[2,3,5] x) => (float[2,3,5] y) <float[2,15] r> { r = Relu(x)  y = Softmax(r) }"
    assert "Flatten" in operators(check(parse(text, 12)).model)


@pytest.mark.parametrize("size", ["?", -1])
def test_a_placeholder_is_no_size(size: str | int) -> None:
    """Four sizes are called "?", two and two of them are not the same."""
    text = "g (float[A,B] x, float[C,D] z) => (float[C,D] y) { s = Shape(z) r = Reshape(x, s) y = Neg(r) }"
    model = parse(text, 17)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
            setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
    normalized = normalize(ir.from_proto(model))
    assert signature(ir.to_proto(normalized.model)) == signature(model)
    feeds = {"x": draw(2, 6), "z": draw(3, 4)}
    assert_close(run(ir.to_proto(normalized.model), feeds), run(model, feeds), 1e-5)


# What each change of an operator is tried with: the opset, the graph, and its weights.
FORMS: dict[str, tuple[int, str]] = {
    "Clip": (10, "g (float[2,3] x) => (float[2,3] y) { y = Clip<min: float = -0.5, max: float = 0.25>(x) }"),
    "Clip above": (7, "g (float[2,3] x) => (float[2,3] y) { y = Clip<max: float = 0.25>(x) }"),
    "Pad": (10, "g (float[2,3] x) => (float[4,3] y) { y = Pad<pads: ints = [1,0,1,0], value: float = 2.0>(x) }"),
    "Pad by reflection": (
        7,
        'g (float[2,3] x) => (float[2,5] y) { y = Pad<mode: string = "reflect", pads: ints = [0,1,0,1]>(x) }',
    ),
    "Slice": (9, "g (float[4,5] x) => (float[2,5] y) { y = Slice<starts: ints = [1], ends: ints = [-1]>(x) }"),
    "Slice of axes": (
        7,
        "g (float[4,5] x) => (float[4,3] y) { y = Slice<axes: ints = [1], starts: ints = [1], ends: ints = [4]>(x) }",
    ),
    "TopK": (9, "g (float[4,5] x) => (float[4,2] y, int64[4,2] i) { y, i = TopK<axis: int = 1, k: int = 2>(x) }"),
    "Split": (12, "g (float[4,5] x) => (float[4,2] y, float[4,3] z) { y, z = Split<axis: int = 1, split = [2,3]>(x) }"),
    "Split evenly": (13, "g (float[4,6] x) => (float[4,3] y, float[4,3] z) { y, z = Split<axis: int = 1>(x) }"),
    "Squeeze": (12, "g (float[4,1,6] x) => (float[4,6] y) { y = Squeeze<axes: ints = [1]>(x) }"),
    "Squeeze all": (11, "g (float[4,1,6] x) => (float[4,6] y) { y = Squeeze(x) }"),
    "Unsqueeze": (11, "g (float[4,6] x) => (float[1,4,6,1] y) { y = Unsqueeze<axes: ints = [0,3]>(x) }"),
    "ReduceSum": (11, "g (float[4,6] x) => (float[4,1] y) { y = ReduceSum<axes: ints = [1]>(x) }"),
    "ReduceSum of all": (11, "g (float[4,6] x) => (float y) { y = ReduceSum<keepdims: int = 0>(x) }"),
    "ReduceMean": (17, "g (float[4,6] x) => (float[4] y) { y = ReduceMean<axes: ints = [-1], keepdims: int = 0>(x) }"),
    "ReduceL2": (13, "g (float[4,6] x) => (float[4,1] y) { y = ReduceL2<axes: ints = [1]>(x) }"),
    "ReduceMax": (12, "g (float[4,6] x) => (float[1,6] y) { y = ReduceMax<axes: ints = [0]>(x) }"),
    "Upsample nearest": (
        8,
        "g (float[1,2,3,4] x) => (float[1,2,6,8] y) { y = Upsample<scales: floats = [1.0,1.0,2.0,2.0]>(x) }",
    ),
    "Upsample linear": (
        9,
        """g (float[1,2,3,4] x) => (float[1,2,6,8] y) {
            s = Constant<value: tensor = float[4] {1.0,1.0,2.0,2.0}>()
            y = Upsample<mode: string = "linear">(x, s)
        }""",
    ),
    "Resize nearest": (
        10,
        """g (float[1,2,3,4] x) => (float[1,2,7,10] y) {
            s = Constant<value: tensor = float[4] {1.0,1.0,2.5,2.5}>()
            y = Resize(x, s)
        }""",
    ),
    "Resize to less": (
        10,
        """g (float[1,2,7,9] x) => (float[1,2,4,5] y) {
            s = Constant<value: tensor = float[4] {1.0,1.0,0.6,0.6}>()
            y = Resize(x, s)
        }""",
    ),
    "Resize linear": (
        10,
        """g (float[1,2,7,9] x) => (float[1,2,4,18] y) {
            s = Constant<value: tensor = float[4] {1.0,1.0,0.6,2.0}>()
            y = Resize<mode: string = "linear">(x, s)
        }""",
    ),
    "Resize of opset 11": (
        11,
        """g (float[1,2,3,4] x) => (float[1,2,6,8] y) {
            r = Constant<value: tensor = float[0] {}>()
            s = Constant<value: tensor = float[4] {1.0,1.0,2.0,2.0}>()
            y = Resize<mode: string = "linear">(x, r, s)
        }""",
    ),
    "Scatter": (
        9,
        """g (float[3,4] x, float[3,1] u) => (float[3,4] y) {
            i = Constant<value: tensor = int64[3,1] {1,0,3}>()
            y = Scatter<axis: int = 1>(x, i, u)
        }""",
    ),
    "BatchNormalization": (
        7,
        """g (float[2,3,4] x) => (float[2,3,4] y) {
            c = Constant<value: tensor = float[3] {1.0,2.0,3.0}>()
            y = BatchNormalization(x, c, c, c, c)
        }""",
    ),
    "RoiAlign": (
        12,
        """g (float[1,2,8,8] x) => (float[1,2,2,2] y) {
            r = Constant<value: tensor = float[1,4] {1.0,1.0,6.0,5.0}>()
            i = Constant<value: tensor = int64[1] {0}>()
            y = RoiAlign<output_height: int = 2, output_width: int = 2, sampling_ratio: int = 2>(x, r, i)
        }""",
    ),
    "GridSample": (
        16,
        """g (float[1,2,4,4] x, float[1,3,3,2] z) => (float[1,2,3,3] y) {
            y = GridSample<mode: string = "bicubic">(x, z)
        }""",
    ),
    "DFT": (17, "g (float[1,8,1] x) => (float[1,8,2] y) { y = DFT(x) }"),
    "Upsample at run time": (
        9,
        """g (float[1,2,3,4] x, float[1,2,1,1] z) => (float[1,2,6,8] y) {
            a = Constant<value: tensor = float[4] {1.0,1.0,2.0,2.0}>()
            f = Shape(z)
            g = Cast<to: int = 1>(f)
            h = Div(g, g)
            s = Mul(a, h)
            y = Upsample(x, s)
        }""",
    ),
    "LSTM": (
        7,
        """g (float[5,2,3] x) => (float[1,2,4] h) <float[1,16,3] w = {}, float[1,16,4] r = {}> {
            o, h = LSTM<hidden_size: int = 4>(x, w, r)
        }""",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_node_of_an_old_opset_keeps_its_meaning(form: str) -> None:
    opset, text = FORMS[form]
    model = parse(text, opset)
    for tensor in model.graph.initializer:
        array = draw(*tensor.dims, seed=len(tensor.name))
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    assert f"opset {opset} to 21" in check(model).notes


def test_group_normalization_gets_numbers_for_channels() -> None:
    """Opset 18 has them for groups. ONNX Runtime doesn't run that, so NumPy says what is right."""
    text = """g (float[2,4,3] x) => (float[2,4,3] y) {
        s = Constant<value: tensor = float[2] {1.0,3.0}>()
        b = Constant<value: tensor = float[2] {0.5,-1.0}>()
        y = GroupNormalization<num_groups: int = 2>(x, s, b)
    }"""
    normalized = normalize(ir.from_proto(parse(text, 18)))
    x = draw(2, 4, 3).astype(np.float64)
    grouped = x.reshape(2, 2, 6)
    grouped = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    expected = grouped * np.array([1.0, 3.0])[:, None] + np.array([0.5, -1.0])[:, None]
    assert_close(
        run(ir.to_proto(normalized.model), {"x": x.astype(np.float32)}),
        [expected.reshape(2, 4, 3).astype(np.float32)],
        1e-5,
    )


def test_every_change_of_an_operator_is_known() -> None:
    """An attribute that an old version has and opset 21 doesn't, or another default, needs an entry in CHANGES."""
    known = {(op_type, below) for op_types, below, _ in CHANGES for op_type in op_types}
    known |= {(op_type, 13) for op_type in SOFTMAXES}
    for name in sorted({schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}):
        for version in range(OLDEST, OPSET):
            try:
                old, new = (onnx.defs.get_schema(name, v, "") for v in (version, OPSET))
            except onnx.defs.SchemaError:
                continue
            if (old.deprecated and version != 18) or old.since_version == new.since_version:
                continue
            changed = [
                attribute
                for attribute, schema in old.attributes.items()
                if attribute not in new.attributes
                or schema.default_value != new.attributes[attribute].default_value
                or (new.attributes[attribute].required and not schema.required)
            ]
            changed += [
                str(i)
                for i, parameter in enumerate(new.inputs)
                if i >= len(old.inputs) and parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single
            ]
            if changed or new.deprecated:
                assert any(op_type == name and version < below for op_type, below in known), (name, version, changed)


GEMMS: dict[str, tuple[str, bool]] = {
    "plain": ("y = Gemm(x, w)", True),
    "bias": ("y = Gemm(x, w, c)", True),
    "transposed": ("y = Gemm<transB: int = 1>(x, t, c)", True),
    "factors": ("y = Gemm<alpha: float = 0.5, beta: float = 0.25, transB: int = 1>(x, t, c)", True),
    "no beta": ("y = Gemm<beta: float = 0.0>(x, w, c)", True),
    "bias at run time": ("y = Gemm(x, w, b)", True),
    "factor of a bias at run time": ("y = Gemm<beta: float = 2.0>(x, w, b)", False),
    "transA": ("z = Transpose(x) y = Gemm<transA: int = 1>(z, w, c)", False),
    "weight at run time": ("z = Gemm(x, w, c) v = Relu(w2) y = Gemm(z, v)", True),
}


@pytest.mark.parametrize("form", GEMMS)
def test_gemm_becomes_a_linear_layer(form: str) -> None:
    body, linear = GEMMS[form]
    weights = {"w": draw(3, 4), "t": draw(4, 3), "c": draw(4)}
    model = parse(f"g (float[B,3] x, float[4] b, float[4,4] w2) => (float[B,4] y) {{ {body} }}", 12, weights)
    for node in model.graph.node:
        node.name = f"{node.op_type}.of.{node.output[0]}"
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm").name
    normalized = check(model)
    layers = linear_layers(normalized.model.graph)
    assert [layer.name for layer in layers] == ([gemm] if linear else [])
    assert ("1 Gemm became MatMul and Add" in normalized.notes) == linear


def test_a_shared_weight_stays_shared() -> None:
    """Two Gemm, and two Transpose of one weight, have two weights together."""
    text = """g (float[B,4] x) => (float[B,4] y) {
        a = Gemm<transB: int = 1>(x, w)
        b = Gemm<transB: int = 1>(a, w)
        t = Transpose<perm: ints = [1,0]>(w)
        c = MatMul(b, t)
        u = Transpose<perm: ints = [1,0]>(w)
        y = MatMul(c, u)
    }"""
    layers = linear_layers(check(parse(text, 12, {"w": draw(4, 4)})).model.graph)
    assert len(layers) == 4
    assert len({layer.weight for layer in layers}) == 2


WEIGHTS: dict[str, str] = {
    "Constant": "m = Constant<value: tensor = float[3,2] {1.0,2.0,3.0,4.0,5.0,6.0}>() y = MatMul(x, m)",
    "Transpose": "m = Transpose(t) y = MatMul(x, m)",
    "Transpose and Identity": "i = Identity(t) m = Transpose<perm: ints = [1,0]>(i) y = MatMul(x, m)",
    "Cast": "m = Cast<to: int = 1>(d) y = MatMul(x, m)",
    "Reshape": "s = Constant<value: tensor = int64[2] {3,2}>() m = Reshape(t, s) y = MatMul(x, m)",
    "Split": "m, n = Split<axis: int = 1>(f) z = MatMul(x, m) u = MatMul(x, n) y = Add(z, u)",
    "Split and Transpose": "m, n = Split<split: ints = [2,2]>(e) o = Transpose(n) y = MatMul(x, o)",
}


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_weight_behind_something_is_an_initializer(form: str) -> None:
    weights = {"t": draw(2, 3), "d": draw(3, 2, dtype=np.float64), "f": draw(3, 4), "e": draw(4, 3)}
    used = {name: array for name, array in weights.items() if f"({name}" in WEIGHTS[form]}
    normalized = check(parse(f"g (float[B,3] x) => (float[B,2] y) {{ {WEIGHTS[form]} }}", 12, used))
    assert set(operators(normalized.model)) <= {"MatMul", "Add"}
    assert linear_layers(normalized.model.graph)


def test_a_large_weight_is_folded_but_nothing_grows() -> None:
    large = draw(1100, 1000)
    text = """g (float[B,1000] x) => (float[B,1100] y, float[2000,1100] z) {
        m = Transpose(w)
        y = MatMul(x, m)
        r = Constant<value: tensor = int64[2] {2,1}>()
        a = Tile(m, r)
        z = Relu(a)
    }"""
    normalized = check(parse(text, 12, {"w": large}))
    assert sorted(operators(normalized.model)) == ["MatMul", "Relu", "Tile"]


def test_weights_in_a_file_stay_there(tmp_path: Path) -> None:
    text = """g (float[B,8,8] x) => (float[B,64] y) {
        f = Reshape(x, s)
        a = MatMul(f, w)
        y = Gemm<transB: int = 1>(a, t)
    }"""
    model = ir.from_proto(parse(text, 12, {"w": draw(64, 64), "t": draw(64, 64), "s": np.array([-1, 64])}))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    normalized = normalize(ir.load(tmp_path / "m.onnx")).model
    first, second = (layer.weight.const_value for layer in linear_layers(normalized.graph))
    assert isinstance(first, ir.ExternalTensor)
    assert isinstance(second, ir.LazyTensor)
    shape = normalized.graph[0].outputs[0].shape
    assert shape is not None
    assert (len(shape), shape[1]) == (2, 64)


def halves(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """A float32 model with all float32 made float16 or bfloat16."""
    model = copy.deepcopy(model)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), tensor.name))
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_becomes_float32_inside(kind: int) -> None:
    """Compared with the float32 model of the same weights on the same input, and rounded like it."""
    text = """g (float[B,2,T,4] x, int64[1] n) => (float[B,2,T,4] y, float[n] z) {
        h = Cast<to: int = HALF>(x)
        f = Cast<to: int = 1>(h)
        c = Cast<to: int = HALF>(f)
        q = MatMul(c, w)
        k = Transpose<perm: ints = [0,1,3,2]>(c)
        s = MatMul(q, k)
        a = Softmax<axis: int = 3>(s)
        y = MatMul(a, c)
        z = ConstantOfShape<value: tensor = float[1] {1.5}>(n)
    }"""
    weights = {"w": draw(4, 4).astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)}
    full = parse(text.replace("HALF", "1"), 12 if kind == TensorProto.FLOAT16 else 13, weights)
    model = halves(parse(text.replace("HALF", str(kind)), full.opset_import[0].version, weights), kind)
    (value,) = model.graph.node[-1].attribute
    value.t.CopyFrom(numpy_helper.from_array(np.array([1.5], helper.tensor_dtype_to_np_dtype(kind))))
    original = ir.from_proto(model)
    before = model.SerializeToString(deterministic=True)
    normalized = normalize(original)
    assert model.SerializeToString(deterministic=True) == before
    assert original.graph.initializers["w"].dtype == ir.DataType(kind)
    assert_well_formed(normalized.model)
    proto = ir.to_proto(normalized.model)
    assert signature(proto) == signature(model)
    onnx.checker.check_model(proto, full_check=True)
    assert f"{ir.DataType(kind).name.lower()} became float32" in normalized.notes
    assert len(attention_patterns(normalized.model.graph)) == 1
    assert operators(normalized.model).count("Cast") == 3
    assert len(linear_layers(normalized.model.graph)) == 1
    if kind == TensorProto.FLOAT16:
        feeds = feeds_of(model)
        wide = {name: array.astype(np.float32) if name == "x" else array for name, array in feeds.items()}
        expected = [array.astype(np.float16) for array in run(full, wide)]
        assert_close(run(proto, feeds), expected, 1e-3)
        assert_close(run(proto, feeds), run(model, feeds), 1e-2)


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_and_identity_go(opset: int) -> None:
    text = """g (float[B,3] x) => (float[B,3] y, float[B,3] z, float[B,3] u) {
        i = Identity(x)
        d = Dropout(i)
        r = Relu(d)
        e, mask = Dropout(r)
        y = Neg(e)
        z = Dropout(r)
        u = Identity(x)
    }"""
    normalized = check(parse(text, opset))
    assert operators(normalized.model) == ["Relu", "Neg", "Identity"]
    assert "3 Dropout and Identity went" in normalized.notes


def test_a_dropout_mask_that_is_used_stays() -> None:
    check(parse("g (float[B,3] x) => (float[B,3] y, bool[B,3] m) { y, m = Dropout(x) }", 12))


@pytest.mark.parametrize("training", ["bool t", "float u"])
def test_dropout_for_training_stays(training: str) -> None:
    constant = "" if training == "bool t" else "t = Constant<value: tensor = bool {1}>()"
    text = f"""g (float[B,3] x, {training}) => (float[B,3] y) {{
        {constant}
        r = Constant<value_float: float = 0.5>()
        y = Dropout(x, r, t)
    }}"""
    assert operators(normalize(ir.from_proto(parse(text, 12))).model) == ["Dropout"]


SUBGRAPHS = {
    "If": """g (float[3,3] x, bool c) => (float[3,3] y) {
        y = If(c) <
            then_branch = a () => (float[3,3] o) {
                w = Constant<value: tensor = float[3] {1.0,2.0,3.0}>()
                n = Dropout(x)
                t = Mul(n, w)
                o = Softmax<axis: int = 1>(t)
            },
            else_branch = b () => (float[3,3] p) {
                w = Constant<value: tensor = float[3] {3.0,2.0,1.0}>()
                p = Identity(x)
            }
        >
    }""",
    "Loop": """g (float[3,3] x) => (float[3,3] y, float[2,3] z) {
        n = Constant<value: tensor = int64 {2}>()
        k = Constant<value: tensor = bool {1}>()
        y, z = Loop(n, k, x) <body = b (int64 i, bool go, float[3,3] s) => (bool o, float[3,3] t, float[3] u) {
            o = Identity(go)
            w = Constant<value: tensor = float[3,3] {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0}>()
            v = Gemm<alpha: float = 0.01, transB: int = 1>(s, w)
            t = Identity(v)
            u = ReduceSum<axes: ints = [0], keepdims: int = 0>(s)
        }>
    }""",
}


@pytest.mark.parametrize("form", SUBGRAPHS)
def test_subgraphs_are_normalized(form: str) -> None:
    normalized = check(parse(SUBGRAPHS[form], 12))
    assert len(linear_layers(normalized.model.graph)) == (1 if form == "Loop" else 0)


@pytest.mark.parametrize("condition", [False, True])
def test_both_branches_give_the_same(condition: bool) -> None:
    model = parse(SUBGRAPHS["If"], 12)
    feeds = {"x": draw(3, 3), "c": np.array(condition)}
    assert_close(run(ir.to_proto(normalize(ir.from_proto(model)).model), feeds), run(model, feeds), 1e-5)


def test_sequences_stay_sequences() -> None:
    text = """g (float[2,3] x, bool c) => (float[2,6] y) {
        s = If(c) <
            then_branch = a () => (seq(float[2,3]) o) { n = Neg(x)  o = SequenceConstruct(x, n) },
            else_branch = b () => (seq(float[2,3]) p) { p = SequenceConstruct(x, x) }
        >
        y = ConcatFromSequence<axis: int = 1>(s)
    }"""
    check(parse(text, 16))


def test_a_sequence_split_at_run_time_is_left() -> None:
    text = """g (float[4,3] x, int64 n) => (float[1,3] y) {
        s = SplitToSequence(x, n)
        i = Constant<value: tensor = int64 {0}>()
        y = SequenceAt(s, i)
    }"""
    model = parse(text, 12)
    feeds = {"x": draw(4, 3), "n": np.array(1)}
    assert_close(run(ir.to_proto(normalize(ir.from_proto(model)).model), feeds), run(model, feeds), 1e-5)


def test_functions_are_written_out() -> None:
    text = """g (float[B,3] x) => (float[B,3] y) { a = local.twice(x) y = local.twice(a) }
    <domain: "local", opset_import: ["" : 17]> twice (x) => (y) {
        c = Constant<value_float: float = 2.0>()
        m = Mul(x, c)
        y = ReduceSum<keepdims: int = 1, noop_with_empty_axes: int = 1>(m)
    }"""
    normalized = check(parse(text, 17, ir_version=8))
    assert operators(normalized.model) == ["Mul", "ReduceSum"] * 2
    assert "1 function was written out" in normalized.notes


def test_a_function_of_another_opset_is_refused() -> None:
    text = """g (float[B,3] x) => (float[B,3] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 12]> f (x) => (y) { y = Relu(x) }"""
    assert_refused(parse(text, 17, ir_version=8), "the model's own functions cannot be written out: .*17.*12")


def test_names_are_made_unique_and_good_ones_kept() -> None:
    model = parse(
        """g (float[2,3] x, bool c) => (float[2,3] y) {
            r = Relu(x)
            s = Neg(r)
            y = If(c) <then_branch = a () => (float[2,3] o) { t = Abs(s) o = Neg(t) },
                       else_branch = b () => (float[2,3] p) { t = Exp(s) p = Neg(t) }>
        }""",
        12,
    )
    for node, name in zip(model.graph.node, ("same", "same", "good"), strict=True):
        node.name = name
    normalized = check(model)
    nodes = [node.name for node in normalized.model.graph.all_nodes()]
    assert nodes == ["same", "same.1", "good", "Abs", "Neg", "Exp", "Neg.1"]
    names = {value.name for graph in normalized.model.graphs() for node in graph for value in node.outputs}
    assert {"r", "s", "y", "o", "p", "t", "t.1"} == names
    assert "6 values and nodes got names" in normalized.notes


def test_weights_listed_as_inputs_are_none() -> None:
    model = parse("g (float[B,3] x, float[3,4] w) => (float[B,4] y) { y = MatMul(x, w) }", 9, {"w": draw(3, 4)}, 3)
    normalized = check(model)
    assert [value.name for value in normalized.model.graph.inputs] == ["x"]
    assert "1 weight is no longer an input" in normalized.notes
    assert len(linear_layers(normalized.model.graph)) == 1


def test_shapes_are_inferred() -> None:
    normalized = check(attention(11, "<axis: int = 3>"))
    assert all(v.shape is not None and len(v.shape) == 4 for node in normalized.model.graph for v in node.outputs)


def test_a_newer_opset_that_changed_nothing_becomes_21() -> None:
    text = "g (float[1,2,5,5] x) => (float[1,4,5,5] y) { c = Conv<pads: ints = [1,1,1,1]>(x, w) y = Elu(c) }"
    normalized = check(parse(text, 22, {"w": draw(4, 2, 3, 3)}, 10))
    assert "opset 22 to 21" in normalized.notes


@pytest.mark.parametrize(
    ("opset", "body", "reason"),
    [
        (23, "y = RMSNormalization(x, w)", "RMSNormalization RMSNormalization is newer than 21"),
        (22, "y = MaxPool<kernel_shape: ints = [2], ceil_mode: int = 1>(x)", "rounds its shape up"),
    ],
)
def test_a_newer_opset_stays_where_something_needs_it(opset: int, body: str, reason: str) -> None:
    model = parse(f"g (float[1,4,8] x) => (float[1,4,D] y) {{ {body} }}", opset, {"w": draw(8)}, 11)
    assert any(reason in note for note in check(model, opset).notes)


def test_other_domains_stay() -> None:
    text = "g (float[B,3] x) => (float[B,4] y) { f = com.microsoft.FusedMatMul(x, w) y = com.microsoft.Gelu(f) }"
    normalized = check(parse(text, 12, {"w": draw(3, 4)}), checked=False)
    assert operators(normalized.model) == ["FusedMatMul", "Gelu"]


def test_a_quantized_model_is_taken_as_it_is() -> None:
    text = """g (float[B,3] x) => (float[B,4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        m = DequantizeLinear(w, s, z)
        y = MatMul(d, m)
    }"""
    weights = {"w": np.arange(12, dtype=np.uint8).reshape(3, 4), "s": np.float32(0.1), "z": np.uint8(3)}
    model = parse(text, 12, {name: np.asarray(array) for name, array in weights.items()})
    normalized = check(model)
    assert operators(normalized.model) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]


def assert_refused(model: onnx.ModelProto, pattern: str) -> None:
    with pytest.raises(NextscaleError, match=pattern) as caught:
        normalize(ir.from_proto(model))
    assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[int, str, str]] = {
    "too old": (6, "y = Relu(x)", "the model is of opset 6; expected 7 to"),
    "too new": (NEWEST + 1, "y = Relu(x)", f"opset {NEWEST + 1}; expected 7 to {NEWEST}"),
    "training": (
        9,
        "y, m, v, s, t = BatchNormalization(x, c, c, c, c) z = Relu(m)",
        "BatchNormalization node BatchNormalization of opset 9 .* training",
    ),
    "spatial": (7, "y = BatchNormalization<spatial: int = 0>(x, c, c, c, c)", "spatial=0"),
    "an old mask": (7, "y, m = Dropout(x) z = Relu(m)", "Dropout node Dropout of opset 7 .*mask"),
    "Resize at run time": (10, "y = Resize(x, c)", "scales are computed at run time"),
    "Resize both ways": (
        10,
        "s = Constant<value: tensor = float[2] {0.5,2.0}>() y = Resize(x, s)",
        "shrinks one axis and enlarges another",
    ),
    "a mode that is gone": (
        11,
        'y = Resize<coordinate_transformation_mode: string = "tf_half_pixel_for_nn">(x, c, c)',
        "tf_half_pixel_for_nn is gone",
    ),
    "an attribute that no opset has": (12, "y = Relu<consumed_inputs: ints = [0]>(x)", "attribute consumed_inputs"),
    "inputs of another opset": (13, "y = Pad<mode: string = \"edge\">(x)", "1 inputs; expected 2 to 4"),
    "GroupNormalization": (18, "r = Reshape(x, n) y = GroupNormalization<num_groups: int = 1>(r, c, c)", "channels"),
    "an operator that is gone": (10, "y = Upsample(x, c)", "the operator is gone"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_has_no_equal_is_refused_by_name(form: str) -> None:
    opset, body, pattern = REFUSED[form]
    assert_refused(parse(f"g (float[2,2] x, float[2] c, int64[R] n) => (float[2,2] y) {{ {body} }}", opset), pattern)


def test_no_opset_is_refused() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }", 12)
    del model.opset_import[0]
    assert_refused(model, "names 0 opsets of ONNX's own operators; expected one")


def test_bits_of_float16_are_refused() -> None:
    model = parse("g (float16[2] x) => (int16[2] y) { y = BitCast<to: int = 5>(x) }", 26, ir_version=13)
    with pytest.raises(NextscaleError, match="BitCast"):
        normalize(ir.from_proto(model))


class Block(torch.nn.Module):
    """A transformer block with fused weights, as torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.qkv, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)
        self.drop, self.head = torch.nn.Dropout(0.1), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens = x.shape[:2]
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1)
        mixed = (self.drop(weights) @ v).transpose(1, 2).reshape(batch, tokens, 8)
        pooled: torch.Tensor = self.head(torch.nn.functional.gelu(self.out(mixed) + x).mean(1))
        return pooled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("opset", [11, 12, 17])
def test_what_torch_exports(opset: int) -> None:
    torch.manual_seed(0)
    file = io.BytesIO()
    axes = {"x": {0: "B", 1: "T"}}
    torch.onnx.export(
        Block().eval(),
        (torch.randn(2, 5, 8),),
        file,
        opset_version=opset,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        dynamo=False,
    )
    normalized = check(onnx.load_from_string(file.getvalue()))
    assert len(attention_patterns(normalized.model.graph)) == 1
    assert len(linear_layers(normalized.model.graph)) == 3
    assert "Gemm" not in operators(normalized.model)


BUILT: dict[str, Callable[[], onnx.ModelProto]] = {
    "empty names": lambda: helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("MaxPool", ["a"], ["y", ""], kernel_shape=[2])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3])],
        ),
        opset_imports=[helper.make_opsetid("", 12)],
        ir_version=7,
    ),
    "domain by its long name": lambda: helper.make_model(
        helper.make_graph(
            [helper.make_node("Softmax", ["x"], ["y"], domain="ai.onnx")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])],
        ),
        opset_imports=[helper.make_opsetid("ai.onnx", 12)],
        ir_version=7,
    ),
}


@pytest.mark.parametrize("form", BUILT)
def test_odd_names_are_read(form: str) -> None:
    check(BUILT[form]())


def test_an_input_of_float16_that_is_an_output_too() -> None:
    model = parse("g (float16[2] x) => (float16[2] y, float16[2] x) { y = Add (x, x) }", 17)
    found = normalize(ir.from_proto(model)).model
    assert [str(value.name) for value in found.graph.outputs] == ["y", "x"]
    assert found.graph.outputs[1] is found.graph.inputs[0]
    x = np.array([1, 2], np.float16)
    np.testing.assert_array_equal(run(ir.to_proto(found), {"x": x})[0], 2 * x)


def test_notes_of_an_exporter_go() -> None:
    """They tell lines of a program and paths of the machine that it ran on; the model's own metadata stay."""
    proto = block_proto()
    proto.metadata_props.add(key="author", value="me")
    for node in proto.graph.node:
        node.doc_string = "/home/me/model.py:1"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/model.py:1")
    for value in proto.graph.value_info:
        value.doc_string = "/home/me/model.py:1"
    found = ir.to_proto(normalize(ir.from_proto(proto)).model)
    assert b"/home/me" not in found.SerializeToString()
    assert [(item.key, item.value) for item in found.metadata_props] == [("author", "me")]
