"""Every operator in torch beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from nextscale.foreign._torch_operators import OPERATORS, is_known, run_nodes

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
INTEGERS = np.array([[7, -7, 5], [3, -1, 0]])
BOOLEANS = X > 0


def scalar(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


Case = tuple[str, Sequence[NDArray | None], dict, int]
CASES: list[Case] = [
    *((name, (X,), {}, 1) for name in ("Abs", "Cos", "Erf", "Exp", "Gelu", "HardSwish", "Identity", "Neg", "Relu")),
    *((name, (X,), {}, 1) for name in ("Sigmoid", "Sin", "Softplus", "Tanh", "HardSigmoid", "LeakyRelu")),
    *((name, (3 * X,), {}, 1) for name in ("Ceil", "Floor", "HardSigmoid")),
    *((name, (POSITIVE,), {}, 1) for name in ("Log", "Reciprocal", "Sqrt")),
    *((name, (X, POSITIVE), {}, 1) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *((name, (X, X[:1, :, :1]), {}, 1) for name in ("Add", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    ("Equal", (INTEGERS, INTEGERS[:1]), {}, 1),
    *((name, (BOOLEANS, BOOLEANS[:1]), {}, 1) for name in ("And", "Or")),
    ("Not", (BOOLEANS,), {}, 1),
    ("IsNaN", (np.where(X > 0, X, np.float32(np.nan)),), {}, 1),
    ("Max", (X, POSITIVE, X[::-1].copy()), {}, 1),
    ("Min", (X,), {}, 1),
    ("Div", (INTEGERS, np.array([2, 3, -2])), {}, 1),
    ("Mod", (INTEGERS, np.array([2, 3, -2])), {}, 1),
    ("Mod", (X, POSITIVE), {"fmod": 1}, 1),
    ("Pow", (POSITIVE, scalar(2.5)), {}, 1),
    ("Where", (BOOLEANS, X, scalar(-1)), {}, 1),
    ("Clip", (X, scalar(-0.5), scalar(0.25)), {}, 1),
    ("Clip", (X, None, scalar(0.25)), {}, 1),
    ("Clip", (X,), {}, 1),
    ("Cast", (X,), {"to": 7}, 1),
    ("Cast", (INTEGERS,), {"to": 1}, 1),
    ("Softmax", (X,), {}, 1),
    ("Softmax", (X,), {"axis": 1}, 1),
    ("Gelu", (X,), {"approximate": "tanh"}, 1),
    ("HardSigmoid", (X,), {"alpha": 0.7, "beta": 0.1}, 1),
    ("LeakyRelu", (X,), {"alpha": 0.3}, 1),
    ("LayerNormalization", (X, X[0, 0], X[1, 1]), {}, 1),
    ("LayerNormalization", (X, X[0]), {"axis": 1, "epsilon": 0.1}, 1),
    ("MatMul", (X, X[0].T.copy()), {}, 1),
    ("MatMul", (X, X.transpose(0, 2, 1).copy()), {}, 1),
    ("Shape", (X,), {}, 1),
    ("Shape", (X,), {"start": 1}, 1),
    ("Shape", (X,), {"start": -2, "end": -1}, 1),
    ("Reshape", (X, ints(0, -1)), {}, 1),
    ("Reshape", (X, ints(4, 0, 2)), {}, 1),
    ("Reshape", (X[:0], ints(0, 5)), {"allowzero": 1}, 1),
    ("Flatten", (X,), {}, 1),
    ("Flatten", (X,), {"axis": 2}, 1),
    ("Flatten", (X,), {"axis": 0}, 1),
    ("Flatten", (X,), {"axis": -1}, 1),
    ("Transpose", (X,), {}, 1),
    ("Transpose", (X,), {"perm": [1, 0, 2]}, 1),
    ("Unsqueeze", (X, ints(0, -1)), {}, 1),
    ("Unsqueeze", (X, ints(2, 1)), {}, 1),
    ("Squeeze", (X[None, :, :1], ints(0, 2)), {}, 1),
    ("Squeeze", (X[None, :, :1],), {}, 1),
    ("Concat", (X, POSITIVE), {"axis": -1}, 1),
    ("Split", (X, ints(1, 3)), {"axis": 2}, 2),
    ("Split", (X,), {"axis": 1, "num_outputs": 2}, 2),
    ("Slice", (X, ints(1), ints(1000), ints(-1), ints(2)), {}, 1),
    ("Slice", (X, ints(0, -2), ints(1, 2**62)), {}, 1),
    ("Slice", (X, ints(-1000, 1), ints(-1, 3), ints(2, 1)), {}, 1),
    ("Gather", (X, ints(2, -1)), {"axis": 1}, 1),
    ("Gather", (X, np.array([[0, 1], [1, 1]])), {}, 1),
    ("Gather", (X, np.array(1)), {"axis": -1}, 1),
    ("Expand", (X[:, :1], ints(3, 1)), {}, 1),
    ("Expand", (X[:1], ints(2, 2, 3, 4)), {}, 1),
    ("Tile", (X, ints(1, 2, 1)), {}, 1),
    ("Pad", (X, ints(0, 1, 2, 0, 0, 1)), {}, 1),
    ("Pad", (X, ints(1, 2), scalar(3), ints(-1)), {}, 1),
    *((name, (X, ints(1)), {}, 1) for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")),
    ("ReduceMean", (X, ints(-1, 0)), {"keepdims": 0}, 1),
    ("ReduceSum", (X,), {}, 1),
    ("ReduceSum", (X,), {"noop_with_empty_axes": 1}, 1),
    ("Conv", (X, RANDOM.normal(size=(5, 3, 2)).astype(np.float32), np.ones(5, np.float32)), {"pads": [1, 0]}, 1),
    ("Conv", (X[None], RANDOM.normal(size=(2, 1, 3, 3)).astype(np.float32)), {"group": 2, "pads": [1, 0, 1, 2]}, 1),
    (
        "Conv",
        (X[None], RANDOM.normal(size=(2, 2, 2, 2)).astype(np.float32)),
        {"strides": [1, 2], "dilations": [2, 1]},
        1,
    ),
]


def node_of(op_type: str, count: int, inputs: Sequence[NDArray | None], attributes: dict) -> ir.Node:
    values = [None if array is None else ir.Value(name=f"i{i}") for i, array in enumerate(inputs)]
    node = ir.node(op_type, values, attributes, num_outputs=count)
    for i, value in enumerate(node.outputs):
        value.name = f"o{i}"
    return node


def in_torch(node: ir.Node, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    values = {value: tensor for value, tensor in zip(node.inputs, tensors, strict=True) if value is not None}
    run_nodes([node], values, {})
    return [values[value] for value in node.outputs]


def in_onnxruntime(node: ir.Node, inputs: Sequence[NDArray | None]) -> list[NDArray]:
    given = {f"i{i}": array for i, array in enumerate(inputs) if array is not None}
    graph = helper.make_graph(
        [ir.to_proto(node)],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()],
        [helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[NDArray] = session.run(None, given)
    return found


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "count"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_it_gives_what_onnxruntime_gives(
    op_type: str, inputs: Sequence[NDArray | None], attributes: dict, count: int
) -> None:
    node = node_of(op_type, count, inputs, attributes)
    assert is_known(node)
    given = [None if array is None else torch.from_numpy(np.array(array)) for array in inputs]
    found = in_torch(node, given)
    for tensor, expected in zip(found, in_onnxruntime(node, inputs), strict=True):
        assert tensor.numpy().dtype == expected.dtype
        assert tensor.shape == expected.shape
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=2e-6)


def test_every_operator_is_tried() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_other_forms_are_refused() -> None:
    for op_type, inputs, attributes in (
        ("Slice", (X, ints(3), ints(0), ints(-1), ints(-1)), {}),
        ("Pad", (X, ints(0, 1, 1, 0, 0, 1)), {"mode": "reflect"}),
        ("Conv", (X, X), {"auto_pad": "SAME_UPPER"}),
    ):
        node = node_of(op_type, 1, inputs, attributes)
        with pytest.raises(NotImplementedError, match=op_type):
            in_torch(node, [torch.from_numpy(array) for array in inputs])
    assert not is_known(ir.node("MatMul", [], domain="com.microsoft"))
    assert not is_known(ir.node("Resize", []))
