from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.export.graph_builder import add_output, branch, finish, new_builder
from nextscale.graph_passes._graph_edit import add_initializer, constant, integer_matmul, replace, splice

X = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)


def model_of_two() -> ir.Model:
    """y = tanh(|x|)."""
    builder = new_builder("two")
    x = builder.input("x", ir.DataType.FLOAT, ["N", 4])
    hidden = builder.op.Abs(x, _name="abs")
    hidden.dtype, hidden.shape = x.dtype, x.shape
    add_output(builder, builder.op.Tanh(hidden, _name="tanh"), "y", ir.DataType.FLOAT, ["N", 4])
    return finish(builder)


def node_named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph.all_nodes() if node.name == name)


def run(model: ir.Model, **feeds: NDArray) -> list[NDArray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[NDArray] = session.run(None, feeds)
    return outputs


def double_and_shift(op: OpBuilder, x: ir.Value) -> list[ir.Value]:
    return [op.Add(op.Mul(x, constant(op, "two", np.float32([2]))), 1.0)]


def test_a_piece_is_inserted_before_a_node() -> None:
    model = model_of_two()
    abs_, tanh = node_named(model, "abs"), node_named(model, "tanh")
    (value,) = splice(model.graph, "piece", [abs_.outputs[0]], double_and_shift, before=tanh)
    tanh.replace_input_with(0, value)
    assert [node.op_type for node in model.graph] == ["Abs", "Mul", "Add", "Tanh"]
    np.testing.assert_allclose(run(model, x=X)[0], np.tanh(np.abs(X) * 2 + 1), rtol=1e-6)


def test_all_names_begin_with_the_prefix() -> None:
    model = model_of_two()
    before = {node.name for node in model.graph}
    abs_, tanh = node_named(model, "abs"), node_named(model, "tanh")
    splice(model.graph, "piece", [abs_.outputs[0]], double_and_shift, before=tanh)
    new = [node for node in model.graph if node.name not in before]
    assert len(new) == 2
    for node in new:
        assert str(node.name).startswith("piece/")
        assert str(node.outputs[0].name).startswith("piece/")
    assert "piece/two" in model.graph.initializers
    assert all(name.startswith("piece/") for name in model.graph.initializers)


def test_two_pieces_of_the_same_body_do_not_meet() -> None:
    model = model_of_two()
    abs_, tanh = node_named(model, "abs"), node_named(model, "tanh")
    value = abs_.outputs[0]
    for prefix in ("first", "second"):
        (value,) = splice(model.graph, prefix, [value], double_and_shift, before=tanh)
    tanh.replace_input_with(0, value)
    np.testing.assert_allclose(run(model, x=X)[0], np.tanh(np.abs(X) * 4 + 3), rtol=1e-6)


def test_operands_bring_their_shapes() -> None:
    model = model_of_two()
    seen = []

    def body(op: OpBuilder, x: ir.Value) -> list[ir.Value]:
        seen.append((x.dtype, x.shape))
        return [op.Neg(x)]

    abs_, tanh = node_named(model, "abs"), node_named(model, "tanh")
    splice(model.graph, "piece", [abs_.outputs[0]], body, before=tanh)
    assert seen == [(ir.DataType.FLOAT, abs_.outputs[0].shape)]


def test_several_operands_and_results() -> None:
    model = model_of_two()
    abs_, tanh = node_named(model, "abs"), node_named(model, "tanh")
    operands = [abs_.outputs[0], model.graph.inputs[0]]
    less, more = splice(model.graph, "piece", operands, lambda op, a, b: [op.Sub(a, b), op.Add(a, b)], before=tanh)
    for name, value in (("less", less), ("more", more)):
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(["N", 4])
        model.graph.outputs.append(value)
    _, found_less, found_more = run(model, x=X)
    np.testing.assert_array_equal(found_less, np.abs(X) - X)
    np.testing.assert_array_equal(found_more, np.abs(X) + X)


def test_a_piece_in_a_subgraph() -> None:
    """With an operand from outside it."""
    builder = new_builder("outer")
    x = builder.input("x", ir.DataType.FLOAT, ["N", 4])
    on = builder.input("on", ir.DataType.BOOL, [])
    y = branch(builder.op, on, lambda op: [op.Tanh(x, _name="tanh")], lambda op: [op.Neg(x)], ["y"])[0]
    add_output(builder, builder.op.Identity(y), "out", ir.DataType.FLOAT, ["N", 4])
    model = finish(builder)
    tanh = node_named(model, "tanh")
    assert isinstance(tanh.graph, ir.Graph)
    assert tanh.graph is not model.graph
    (value,) = splice(tanh.graph, "piece", [x], double_and_shift, before=tanh)
    tanh.replace_input_with(0, value)
    np.testing.assert_allclose(run(model, x=X, on=np.array(True))[0], np.tanh(X * 2 + 1), rtol=1e-6)
    np.testing.assert_array_equal(run(model, x=X, on=np.array(False))[0], -X)


def test_replacing_a_graph_output_keeps_its_name_and_shape() -> None:
    model = model_of_two()
    tanh = node_named(model, "tanh")
    (value,) = splice(model.graph, "piece", [tanh.inputs[0]], lambda op, x: [op.Neg(x)], before=tanh)
    replace(tanh.outputs[0], value)
    (output,) = model.graph.outputs
    assert output is value
    assert (output.name, output.dtype, str(output.shape)) == ("y", ir.DataType.FLOAT, "[N,4]")
    assert [node.op_type for node in model.graph] == ["Abs", "Neg"]
    np.testing.assert_array_equal(run(model, x=X)[0], -np.abs(X))


def test_replacing_reaches_every_reader() -> None:
    model = model_of_two()
    abs_ = node_named(model, "abs")
    hidden = abs_.outputs[0]
    name = hidden.name
    model.graph.outputs.append(hidden)
    (value,) = splice(model.graph, "piece", [model.graph.inputs[0]], lambda op, x: [op.Neg(x)], before=abs_)
    replace(hidden, value)
    assert [node.op_type for node in model.graph] == ["Neg", "Tanh"]
    assert model.graph.outputs[1].name == name
    found, negative = run(model, x=X)
    np.testing.assert_array_equal(negative, -X)
    np.testing.assert_allclose(found, np.tanh(-X), rtol=1e-6)


def test_a_constant_of_one_name_is_made_once() -> None:
    op = new_builder("constants").op
    first, again = (constant(op, "limit", np.array(3, np.uint8)) for _ in range(2))
    assert first is again
    assert list(op.builder.graph.initializers) == ["limit"]


@pytest.mark.parametrize("other", [np.array(4, np.uint8), np.array([3, 3], np.uint8)], ids=["value", "shape"])
def test_a_constant_of_one_name_means_one_array(other: NDArray) -> None:
    op = new_builder("constants").op
    constant(op, "limit", np.array(3, np.uint8))
    with pytest.raises(AssertionError):
        constant(op, "limit", other)


def test_initializers_from_arrays_and_tensors() -> None:
    model = model_of_two()
    codes = np.arange(16, dtype=np.uint8).reshape(4, 4).astype(ml_dtypes.uint4)
    plain = add_initializer(model.graph, "plain", np.ones((2, 3), np.int8))
    packed = add_initializer(model.graph, "packed", ir.tensor(codes, dtype=ir.DataType.UINT4, name="packed"))
    assert (plain.dtype, str(plain.shape)) == (ir.DataType.INT8, "[2,3]")
    assert (packed.dtype, str(packed.shape)) == (ir.DataType.UINT4, "[4,4]")
    assert list(model.graph.initializers) == ["plain", "packed"]
    assert packed.const_value is not None
    assert packed.const_value.nbytes == 8


# The integer product


def product_model(scale_shape: list[int | str], times: bool) -> ir.Model:
    """a_scale b_scale (a - 128) b, with a_scale in the operator, or multiplied by afterwards."""
    builder = new_builder("product")
    op = builder.op
    a = builder.input("a", ir.DataType.UINT8, ["R", "l", "K"])
    b = builder.input("b", ir.DataType.INT8, ["K", "N"])
    a_scale = builder.input("a_scale", ir.DataType.FLOAT, scale_shape)
    b_scale = builder.input("b_scale", ir.DataType.FLOAT, ["N"])
    one, middle = constant(op, "one", np.array(1, np.float32)), constant(op, "middle", np.array(128, np.uint8))
    y = integer_matmul(op, a, b, one if times else a_scale, b_scale, middle, name="layer")
    add_output(builder, op.Mul(y, a_scale) if times else y, "y", ir.DataType.FLOAT, ["R", "l", "N"])
    return finish(builder)


@pytest.mark.exact_products
@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 1, 1), (1, 5, 1), (1, 1, 1)], ids=str)
def test_a_scale_for_each_row_multiplies_the_rows(shape: tuple[int, ...]) -> None:
    """What the passes rely on: a_scale may broadcast to the product, scale its rows, and is rounded last."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (4, 5, 37)).astype(np.uint8)
    b = rng.integers(-127, 128, (37, 19)).astype(np.int8)
    # Powers of two for channels: then only the product with a_scale is rounded, in whatever order.
    b_scale = np.exp2(rng.integers(-8, 8, 19)).astype(np.float32)
    a_scale = rng.uniform(0.01, 1, shape).astype(np.float32)
    feeds = {"a": a, "b": b, "a_scale": a_scale, "b_scale": b_scale}
    inside, after = (run(product_model(["A", "B", 1], times), **feeds)[0] for times in (False, True))
    np.testing.assert_array_equal(inside, after)
    integers = (a.astype(np.int64) - 128) @ b.astype(np.int64)
    np.testing.assert_array_equal(inside, integers.astype(np.float32) * b_scale * a_scale)


def test_the_integer_product_has_its_name_and_no_bias() -> None:
    (node,) = product_model(["A", "B", 1], times=False).graph
    assert node.op_type == "MatMulIntegerToFloat"
    assert node.name == "layer"
    assert len(node.inputs) == 5
    assert node.outputs[0].dtype == ir.DataType.FLOAT


def test_a_bias_inside_the_product_would_be_scaled() -> None:
    """Why it has none: ONNX Runtime adds it before the rows' scales if there is one for each row."""
    model = product_model(["A", "B", 1], times=False)
    (node,) = model.graph
    bias = add_initializer(model.graph, "bias", np.full(3, 10, np.float32))
    node.resize_inputs(7)
    node.replace_input_with(6, bias)
    feeds = {
        "a": np.full((2, 1, 4), 129, np.uint8),
        "b": np.ones((4, 3), np.int8),
        "a_scale": np.float32([[[1]], [[2]]]),
        "b_scale": np.ones(3, np.float32),
    }
    y = run(model, **feeds)[0]
    np.testing.assert_array_equal(y[:, 0, 0], [14, 2 * 14])  # not 2 * 4 + 10
