"""The products of `quantize_linear_two_bytes` as operators of nextscale-ops; codes and fine codes stay what they are.

MatMulIntegerToFloat   becomes   Linear
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._fused_nodes import (
    OPERATORS,
    OPERATORS_VERSION,
    fused_nodes,
    insert_operator,
    take_over,
)
from nextscale.graph_passes._graph_edit import MICROSOFT, constant, input_of, is_operator, splice
from nextscale.graph_passes.quantize_linear_two_bytes import MIDDLE


def fuse_two_bytes(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of `model` whose products of two bytes are Linear.

    Args:
        model: what `quantize_linear_two_bytes` made.
        names: of its layers.
    Raises:
        ValueError: a layer has no such product, in stock or fused form.
    """
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    products = {str(node.name): node for node in model.graph if is_operator(node, "MatMulIntegerToFloat", MICROSOFT)}
    fused = {str(node.name) for node in fused_nodes(model.graph, "Linear")}
    for name in names:
        if f"{name}/fused" in fused:
            continue
        product = products.get(f"{name}/integer/{name}")
        if product is None:
            raise ValueError(f"layer {name!r}: no product of two bytes in the graph")
        _fuse(model.graph, name, product)
    return model


def _fuse(graph: ir.Graph, name: str, product: ir.Node) -> None:
    scale, zero_point = splice(graph, f"{name}/tokens", [input_of(product, 2)], _by_token, before=product)
    inputs = [input_of(product, 0), scale, zero_point, input_of(product, 1), input_of(product, 3)]
    made = insert_operator(graph, "Linear", inputs, ["y"], f"{name}/fused", {}, before=product)
    take_over(made["y"], product.outputs[0])
    graph.remove(product, safe=True)


def _by_token(op: OpBuilder, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Scale [2R, l, 1] as Linear takes it, [2R, l], and as many zero points."""
    scales = op.Reshape(scale, [0, 0])
    scales.dtype = ir.DataType.FLOAT
    middle = constant(op, "zero_point", np.array(MIDDLE, np.uint8))
    return scales, op.Expand(middle, op.Shape(scales))
