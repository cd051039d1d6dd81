"""Insert QDQ around linear layers with static ranges: u8 activations, one range or one per stage; s8 weights.

    x -> QuantizeLinear -> DequantizeLinear \\
                                             MatMul -> y
              s8 weight -> DequantizeLinear /

ONNX Runtime turns each such MatMul into MatMulIntegerToFloat, provided that every DequantizeLinear has one consumer and
nothing quantizes y. Layers that share their input share its QuantizeLinear. Below 8 bits a Min caps the codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_edit import MICROSOFT, add_initializer, integer_matmul
from nextscale.graph_passes._stage_tables import stage_tables
from nextscale.graph_passes.linear_layers import (
    LinearLayer,
    WeightRounder,
    drop_unused,
    find_layers,
    insert_integer_weight,
    layer_bias,
    nearest,
    substitute,
)
from nextscale.graph_passes.qparams import ActivationQParams, Range


def quantize_linear(
    model: ir.Model,
    ranges: Mapping[str, Range],
    stage_input: str | None,
    bits: int = 8,
    rounder: WeightRounder | None = None,
    packed: bool = False,
    *,
    products: bool = False,
) -> ir.Model:
    """A copy of `model` whose linear layers named in `ranges` are integer.

    Args:
        model: a stage graph, or any other.
        ranges: for each layer's name the range of its input: [S] to choose by stage, or [1].
        stage_input: the graph input (int64 []) that tells the stage; None where there is one.
        bits: of the activations, 2 to 8.
        rounder: makes the integer weights; by default 8 bits, round to nearest.
        packed: store the weights, of at most 4 bits, as UINT4.
        products: make the integer products here, so that nothing around a layer can keep ONNX Runtime from it, as a
            bias of a matrix does: the two become a float Gemm first.
    Raises:
        ValueError: a name in `ranges` is not a linear layer of the model.
    """
    model = model.clone()
    layers = find_layers(model.graph, set(ranges))
    quantizers = _insert_quantizers(model, layers, ranges, stage_input, bits)
    # By layer: what one reads may be another's product, which is another value once that is replaced.
    by_layer = [(layer, quantizers[layer.activation]) for layer in layers]
    for layer, quantizer in by_layer:
        rounding = rounder or nearest()
        if products:
            model.opset_imports.setdefault(MICROSOFT, 1)
            _insert_product(model, layer, quantizer, rounding, packed)
        else:
            _insert_dequantizers(model.graph, layer, quantizer, rounding, packed)
    return model


Quantizer = tuple[ir.Value, ir.Value, ir.Value]  # codes, scale, zero point


def _insert_quantizers(
    model: ir.Model, layers: Sequence[LinearLayer], ranges: Mapping[str, Range], stage_input: str | None, bits: int
) -> dict[ir.Value, Quantizer]:
    """One QuantizeLinear for each distinct input of the layers."""
    first = {layer.activation: layer for layer in reversed(layers)}
    merged: dict[ir.Value, Range] = {}
    for layer in layers:
        activation, found = layer.activation, ranges[layer.name]
        merged[activation] = merged[activation].merge(found) if activation in merged else found
    qparams = {activation: ActivationQParams.from_range(found, bits) for activation, found in merged.items()}
    by_stage = {str(activation.name): found for activation, found in qparams.items() if len(found.scale) > 1}
    values = stage_tables(model.graph, by_stage, stage_input, "activation")
    quantizers = {}
    for activation, layer in first.items():
        name = str(activation.name)
        if name not in values:
            values[name] = (
                add_initializer(model.graph, f"{name}.scale", qparams[activation].scale),
                add_initializer(model.graph, f"{name}.zero_point", qparams[activation].zero_point),
            )
        scale, zero_point = values[name]
        node = ir.node("QuantizeLinear", [activation, scale, zero_point], name=f"{layer.name}/quantize")
        node.outputs[0].name = f"{name}.codes"
        layer.graph.insert_before(layer.node, node)
        codes = node.outputs[0]
        if bits < 8:
            codes = _capped(model.graph, layer, codes, 2**bits - 1)
        quantizers[activation] = (codes, scale, zero_point)
    return quantizers


def _capped(main: ir.Graph, layer: LinearLayer, codes: ir.Value, qmax: int) -> ir.Value:
    name = f"activation.qmax.{qmax}"
    limit = main.initializers.get(name) or add_initializer(main, name, np.array(qmax, np.uint8))
    # ONNX Runtime's Min has no kernel for uint8 before 1.24.
    node = ir.node("Clip", [codes, None, limit], name=f"{layer.name}/cap")
    node.outputs[0].name = f"{codes.name}.capped"
    layer.graph.insert_before(layer.node, node)
    return node.outputs[0]


def _insert_product(
    model: ir.Model, layer: LinearLayer, quantizer: Quantizer, rounder: WeightRounder, packed: bool
) -> None:
    """Put the integer product in the place of the layer's MatMul, and of the Add of its bias if it has one."""
    weight, bias = insert_integer_weight(model.graph, layer, rounder, packed), layer_bias(layer)

    def body(op: OpBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        codes, scale, zero_point, weight_codes, weight_scale, *bias = operands
        return [integer_matmul(op, codes, weight_codes, scale, weight_scale, zero_point, layer.name, *bias)]

    operands = [*quantizer, weight.codes, weight.scale, *([] if bias is None else [bias])]
    substitute(model, layer, operands, body, with_bias=bias is not None)


def _insert_dequantizers(
    main: ir.Graph, layer: LinearLayer, quantizer: Quantizer, rounder: WeightRounder, packed: bool
) -> None:
    """Feed the layer's MatMul from a DequantizeLinear of its own on each side."""
    old, name = layer.weight, str(layer.weight.name)
    weight = insert_integer_weight(main, layer, rounder, packed)
    none = f"{name}.no_zero_point"
    zeros = main.initializers.get(none) or add_initializer(main, none, np.zeros(len(weight.sums), np.int8))
    sides: tuple[tuple[Sequence[ir.Value], dict[str, int], str], ...]
    sides = ((quantizer, {}, "activation"), ((weight.codes, weight.scale, zeros), {"axis": 1}, "weight"))
    for i, (inputs, attributes, side) in enumerate(sides):
        node = ir.node("DequantizeLinear", inputs, attributes, name=f"{layer.name}/dequantize_{side}")
        node.outputs[0].name = f"{layer.name}.{side}"
        layer.graph.insert_before(layer.node, node)
        layer.node.replace_input_with(i, node.outputs[0])
    drop_unused(main, old)
