"""Insert a piece of graph, written with onnxscript's OpBuilder, into a graph that exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_builder import GraphBuilder

MICROSOFT = "com.microsoft"

Body = Callable[..., Sequence[ir.Value]]


def splice(graph: ir.Graph, prefix: str, operands: Sequence[ir.Value], body: Body, before: ir.Node) -> list[ir.Value]:
    """Insert what `body(op, *operands)` builds before the node `before`, and return the values that it returns.

    All names of the new nodes, values and initializers begin with `prefix`, which must be new to the graph.
    """
    piece = ir.Graph([], [], nodes=[], name=prefix, opset_imports={**graph.opset_imports, MICROSOFT: 1})
    stand_ins = [ir.Value(name=f"operand.{i}", type=v.type, shape=v.shape) for i, v in enumerate(operands)]
    piece.inputs.extend(stand_ins)
    results = list(body(GraphBuilder(piece).op, *stand_ins))
    for name, value in list(piece.initializers.items()):
        del piece.initializers[name]
        value.name = f"{prefix}/{name}"
        graph.register_initializer(value)
    for node in piece:
        node.name = f"{prefix}/{node.name}"
        for output in node.outputs:
            output.name = f"{prefix}/{output.name}"
    for stand_in, operand in zip(stand_ins, operands, strict=True):
        stand_in.replace_all_uses_with(operand)
    nodes = list(piece)
    piece.remove(nodes)
    graph.insert_before(before, nodes)
    return results


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let all that reads `old`, a node's only output, read `new`, and remove the node."""
    node = old.producer()
    assert node is not None
    assert isinstance(node.graph, ir.Graph)
    new.name, old_name = old.name, old.name
    old.name = f"{old_name}.replaced"
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def input_of(node: ir.Node, i: int) -> ir.Value:
    """The node's input i, which must be there."""
    value = node.inputs[i]
    assert value is not None
    return value


def number_of(value: ir.Value | None) -> float | None:
    """The one number that a constant is; None where it is none, or of several."""
    tensor = None if value is None else value.const_value
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def constant_input(node: ir.Node, i: int, *types: ir.DataType) -> np.ndarray | None:
    """The node's input i as an array; None where it is none of constant numbers of these types."""
    value = node.inputs[i] if len(node.inputs) > i else None
    return None if value is None or value.const_value is None or value.dtype not in types else value.const_value.numpy()


def is_operator(node: ir.Node, op_type: str, domain: str = "") -> bool:
    """Whether it is this operator of the domain, by default ONNX's own, not one of another domain with that name."""
    return node.op_type == op_type and node.domain == domain


def constant(op: OpBuilder, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of the piece under construction; one name always means the same array."""
    made = op.builder.graph.initializers.get(name)
    if made is None:
        return op.builder.initializer(ir.tensor(array, name=name), name)
    assert made.const_value is not None
    assert np.array_equal(made.const_value.numpy(), array)
    return made


def add_initializer(graph: ir.Graph, name: str, tensor: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """An initializer of `graph`."""
    tensor = ir.tensor(tensor, name=name) if isinstance(tensor, np.ndarray) else tensor
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def share_constants(graph: ir.Graph, of: ir.Graph) -> None:
    """Let initializers of the same name be the same tensors, so that a bundle stores them once."""
    for name, value in graph.initializers.items():
        if name in of.initializers:
            value.const_value = of.initializers[name].const_value


def integer_matmul(
    op: OpBuilder,
    a: ir.Value,
    b: ir.Value,
    a_scale: ir.Value,
    b_scale: ir.Value,
    a_zero_point: ir.Value,
    name: str | None = None,
    bias: ir.Value | None = None,
) -> ir.Value:
    """a_scale b_scale (a - a_zero_point) b + bias: u8 [..., K], s8 [..., K, N] -> float32 [..., N].

    ONNX Runtime's MatMulIntegerToFloat. a_scale may be a scalar, or any shape that broadcasts to the product; a bias
    [N] goes with a scalar alone, or it would be scaled too.
    """
    names = {} if name is None else {"_name": name}
    further = [] if bias is None else [None, bias]
    y = op.MatMulIntegerToFloat(a, b, a_scale, b_scale, a_zero_point, *further, _domain=MICROSOFT, **names)
    y.dtype = ir.DataType.FLOAT
    return y
