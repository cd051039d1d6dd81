"""Turn Gemm with a constant weight into MatMul and Add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import add_initializer, input_of, is_operator

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_Key = tuple[ir.Value, float, bool]


def split_gemms(model: ir.Model) -> int:
    """Let y = alpha x B + beta C with a constant B [K, N], or [N, K]^T, be MatMul and Add; how many there were.

    The MatMul has the Gemm's name and alpha in its weight; a constant C gets beta. Layers that share a weight still
    share it. A Gemm that transposes x, or has beta with a C made at run time, stays.
    """
    names, made = Names(model), dict[_Key, ir.Value]()
    gemms = [node for node in model.graph.all_nodes() if is_operator(node, "Gemm") and _is_linear_layer(node)]
    for node in gemms:
        _split(model.graph, node, names, made)
    return len(gemms)


def _is_linear_layer(node: ir.Node) -> bool:
    weight = _tensor(node, 1)
    if weight is None or weight.dtype not in FLOATS or node.attributes.get_int("transA", 0) != 0:
        return False
    return not _has_bias(node) or _tensor(node, 2) is not None or node.attributes.get_float("beta", 1.0) in (0.0, 1.0)


def _split(graph: ir.Graph, node: ir.Node, names: Names, made: dict[_Key, ir.Value]) -> None:
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    transposed = bool(node.attributes.get_int("transB", 0))
    weight = _variant(graph, input_of(node, 1), alpha, transposed, names, made)
    bias = None
    if _has_bias(node) and beta != 0:
        bias = input_of(node, 2)
        bias = bias if beta == 1 else _variant(graph, bias, beta, False, names, made)
    product = ir.node("MatMul", [node.inputs[0], weight], name=node.name)
    last, old = product, node.outputs[0]
    if bias is not None:
        last = ir.node("Add", [product.outputs[0], bias], name=names.node(f"{node.name}.bias"))
        product.outputs[0].name = names.value(f"{old.name}.product")
        product.outputs[0].type, product.outputs[0].shape = old.type, old.shape
    (new,) = last.outputs
    new.type, new.shape = old.type, old.shape
    new.name, old.name = old.name, names.value(f"{old.name}.replaced")
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.insert_before(node, [product] if last is product else [product, last])
    node.graph.remove(node, safe=True)


def _variant(
    graph: ir.Graph, value: ir.Value, factor: float, transposed: bool, names: Names, made: dict[_Key, ir.Value]
) -> ir.Value:
    """The initializer, or one that is `factor` times it, transposed; computed when it is read."""
    tensor, key = value.const_value, (value, factor, transposed)
    if factor == 1 and not transposed:
        return value
    if key not in made:
        assert tensor is not None
        shape = tensor.shape.numpy()
        lazy = ir.LazyTensor(
            _scaled(tensor, factor, transposed), tensor.dtype, ir.Shape(shape[::-1] if transposed else shape)
        )
        lazy.name = names.value(f"{value.name}.folded")
        made[key] = add_initializer(graph, lazy.name, lazy)
    return made[key]


def _scaled(tensor: ir.TensorProtocol, factor: float, transposed: bool) -> Callable[[], ir.TensorProtocol]:
    def compute() -> ir.TensorProtocol:
        array: NDArray[np.generic] = tensor.numpy()
        array = np.ascontiguousarray(array.T if transposed else array)
        return ir.tensor(array if factor == 1 else array * array.dtype.type(factor))

    return compute


def _has_bias(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def _tensor(node: ir.Node, i: int) -> ir.TensorProtocol | None:
    """Input i as a constant."""
    value = node.inputs[i]
    return value.const_value if value is not None and value.is_initializer() else None
