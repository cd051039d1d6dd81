"""Integer linear layers, and the codes of their inputs, as operators of nextscale-ops: one node where there were many.

    quantize_linear_pairs:     Split, Sub, 2 QuantizeLinear; 2 products, Add, Concat -> Quantize; PairLinear
    quantize_linear_by_image:  the range, QuantizeLinear; product, terms of the bias -> Quantize; Linear
    quantize_linear_by_token:  the range, QuantizeLinear; product                    -> Quantize; Linear
    quantize_linear:           QuantizeLinear; 2 DequantizeLinear, MatMul, bias      -> Quantize; Linear

The operators read the constants of the stock graph, so that a bundle stores them once (kernels/README.md).
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._fused_nodes import (
    CODE_OUTPUTS,
    OPERATORS,
    OPERATORS_VERSION,
    Attributes,
    fused_nodes,
    insert_operator,
    only_use,
    producer_of,
    take_over,
)
from nextscale.graph_passes._graph_edit import MICROSOFT, input_of, is_operator
from nextscale.graph_passes.integer_model import IntegerLayer, IntegerModel
from nextscale.graph_passes.linear_layers import LinearLayer, layer_bias

# How a layer's quantized input reaches its product: the values in Linear's or PairLinear's order.
Quantized = list[ir.Value]


def fuse_linear(model: ir.Model, integer: IntegerModel) -> ir.Model:
    """A copy of `model` whose integer layers are single nodes, and whose inputs with a range are another one.

    Args:
        model: the integer stage graph, its rows not split.
        integer: what of it is integer, and how.
    Raises:
        ValueError: a layer that should be integer is not, in any form that is known here; names it.
    """
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    products = {str(node.name): node for node in model.graph if is_operator(node, "MatMulIntegerToFloat", MICROSOFT)}
    products |= {str(node.name): node for node in model.graph if is_operator(node, "MatMul")}
    fused = {str(node.name) for node in fused_nodes(model.graph, "Linear", "PairLinear")}
    quantized: dict[ir.Value, Quantized] = {}  # by the codes that stock layers share
    for name, layer in integer.layers.items():
        if any(known.startswith(f"{name}/fused") for known in fused):
            continue
        wanted = _products_of(name, layer)
        missing = [product for product in wanted if product not in products]
        if missing:
            raise ValueError(f"layer {name!r}: no integer product {missing[0]!r} in the graph")
        parts = [products[product] for product in wanted]
        if layer.granularity == "pair":
            _fuse_pair(model.graph, name, parts, quantized, integer.bits)
        elif layer.granularity in ("tensor", "stage"):
            _fuse_static(model.graph, name, parts[0], quantized, integer.bits)
        else:
            _fuse_single(model.graph, name, parts[0], quantized, layer, integer.bits)
    RemoveUnusedNodesPass()(model)
    return model


def _products_of(name: str, layer: IntegerLayer) -> list[str]:
    """What the quantizing passes call the layer's products."""
    if layer.granularity == "pair":
        return [f"{name}/integer/{name}.{part}" for part in ("uncond", "difference")]
    return [name if layer.granularity in ("tensor", "stage") else f"{name}/integer/{name}"]


def _fuse_pair(
    graph: ir.Graph, name: str, parts: list[ir.Node], quantized: dict[ir.Value, Quantized], bits: int
) -> None:
    u, _ = parts
    codes, scales = input_of(u, 0), [input_of(part, i) for part in parts for i in (2, 4)]
    if codes not in quantized:
        quantize = _quantize_linear(codes)
        split = input_of(quantize, 0).producer()
        assert split is not None
        operands = [input_of(split, 0), *scales]
        attributes: Attributes = {"ranges": "pair", "bits": bits}
        made = insert_operator(
            graph, "Quantize", operands, CODE_OUTPUTS["pair"], f"{name}/codes", attributes, before=quantize
        )
        quantized[codes] = [made["codes"], made["difference"]]
    bias = u.inputs[6] if len(u.inputs) > 6 else None
    # y_u goes into the sum and into the Concat of both rows, which is the layer's result.
    (join,) = (node for node, _ in u.outputs[0].uses() if is_operator(node, "Concat"))
    inputs = [*quantized[codes], *scales, input_of(u, 1), input_of(u, 3), bias]
    made = insert_operator(graph, "PairLinear", inputs, ["y"], f"{name}/fused", {}, before=join)
    take_over(made["y"], join.outputs[0])


def _fuse_single(
    graph: ir.Graph,
    name: str,
    product: ir.Node,
    quantized: dict[ir.Value, Quantized],
    layer: IntegerLayer,
    bits: int,
) -> None:
    codes, ranges = input_of(product, 0), str(layer.granularity)
    if codes not in quantized:
        quantize = _quantize_linear(codes)
        x = input_of(quantize, 0)
        attributes: Attributes = {"ranges": ranges, "bits": bits}
        if layer.zero_point is None:
            attributes["image_rows"] = layer.facts.rows
        else:  # its rows are a matrix there
            reshape = x.producer()
            assert reshape is not None
            x, attributes["token_zero_point"] = input_of(reshape, 0), layer.zero_point
        made = insert_operator(
            graph, "Quantize", [x], CODE_OUTPUTS[ranges], f"{name}/codes", attributes, before=quantize
        )
        quantized[codes] = [made["codes"], made["scale"], made["zero_point"]]
    last, bias = product, None
    if layer.granularity == "image":
        # What the zero points add to the sums is added to the product, together with the bias.
        use = only_use(product.outputs[0])
        assert use is not None
        last, i = use
        term = input_of(last, 1 - i).producer()
        assert term is not None
        bias = next((value for value in term.inputs if value is not None and _is_row(value)), None)
    inputs = [*quantized[codes], input_of(product, 1), input_of(product, 3), bias]
    made = insert_operator(graph, "Linear", inputs, ["y"], f"{name}/fused", {}, before=last)
    take_over(made["y"], last.outputs[0])


def _fuse_static(graph: ir.Graph, name: str, product: ir.Node, quantized: dict[ir.Value, Quantized], bits: int) -> None:
    activation, weight = (producer_of(value, "DequantizeLinear") for value in product.inputs)
    if activation is None or weight is None:
        raise ValueError(f"layer {name!r}: its MatMul is in float")
    codes = input_of(activation, 0)
    if codes not in quantized:
        quantize = _quantize_linear(codes)
        scales = [input_of(quantize, i) for i in (1, 2)]
        attributes: Attributes = {"ranges": "static", "bits": bits}
        made = insert_operator(
            graph,
            "Quantize",
            [input_of(quantize, 0), *scales],
            CODE_OUTPUTS["static"],
            f"{name}/codes",
            attributes,
            before=quantize,
        )
        quantized[codes] = [made["codes"], *scales]
    last, bias = product, layer_bias(LinearLayer(product, graph))
    if bias is not None:
        use = only_use(product.outputs[0])
        assert use is not None
        last = use[0]
    inputs = [*quantized[codes], input_of(weight, 0), input_of(weight, 1), bias]
    made = insert_operator(graph, "Linear", inputs, ["y"], f"{name}/fused", {}, before=last)
    take_over(made["y"], last.outputs[0])


def _is_row(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == 1


def _quantize_linear(codes: ir.Value) -> ir.Node:
    """The QuantizeLinear that makes the codes, past what shapes and clips them."""
    node = codes.producer()
    while node is not None and not is_operator(node, "QuantizeLinear"):
        node = input_of(node, 0).producer()
    assert node is not None
    return node
