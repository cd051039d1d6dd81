"""Insert QDQ around linear layers: u8 activations with a range a stage, s8 weights with a scale a channel.

    x -> QuantizeLinear -> DequantizeLinear \\
                                             MatMul -> y
              s8 weight -> DequantizeLinear /

ONNX Runtime turns each such MatMul into MatMulIntegerToFloat, provided that every DequantizeLinear has one consumer and
nothing quantizes y. Layers that share their input share its QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nextscale.graph_passes.qparams import ActivationQParams, QuantizedWeight, Range


@dataclass(frozen=True)
class LinearLayer:
    """A MatMul with a constant 2-D weight [K, N]."""

    node: ir.Node
    graph: ir.Graph

    @property
    def name(self) -> str:
        assert self.node.name is not None
        return self.node.name

    @property
    def activation(self) -> ir.Value:
        assert self.node.inputs[0] is not None
        return self.node.inputs[0]

    @property
    def weight(self) -> ir.Value:
        assert self.node.inputs[1] is not None
        return self.node.inputs[1]


def linear_layers(graph: ir.Graph) -> list[LinearLayer]:
    """The linear layers of a graph and of its subgraphs, in order."""
    layers = []
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2:
            layers.append(LinearLayer(node, graph))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                layers += linear_layers(attribute.as_graph())
    return layers


def quantize_linear(model: ir.Model, ranges: Mapping[str, Range], stage_input: str) -> ir.Model:
    """A copy of `model` whose linear layers named in `ranges` are integer.

    Args:
        model: a stage graph.
        ranges: for each layer's name the range of its input: [S] to choose by stage, or [1].
        stage_input: the graph input (int64 []) that tells the stage.
    Raises:
        ValueError: a name in `ranges` is no linear layer of the model.
    """
    model = model.clone()
    layers = [layer for layer in linear_layers(model.graph) if layer.name in ranges]
    missing = set(ranges) - {layer.name for layer in layers}
    if missing:
        raise ValueError(f"no MatMul with a constant 2-D weight is named {sorted(missing)[0]!r}")
    quantizers = _insert_quantizers(model, layers, ranges, stage_input)
    for layer in layers:
        _insert_dequantizers(model.graph, layer, *quantizers[layer.activation])
    return model


Quantizer = tuple[ir.Value, ir.Value, ir.Value]  # codes, scale, zero point


def _insert_quantizers(
    model: ir.Model, layers: Sequence[LinearLayer], ranges: Mapping[str, Range], stage_input: str
) -> dict[ir.Value, Quantizer]:
    """One QuantizeLinear for each distinct input of the layers."""
    first = {layer.activation: layer for layer in reversed(layers)}
    merged: dict[ir.Value, Range] = {}
    for layer in layers:
        activation, found = layer.activation, ranges[layer.name]
        merged[activation] = merged[activation].merge(found) if activation in merged else found
    qparams = {activation: ActivationQParams.from_range(found) for activation, found in merged.items()}
    by_stage = {activation: found for activation, found in qparams.items() if len(found.scale) > 1}
    values = _stage_tables(model.graph, by_stage, stage_input)
    quantizers = {}
    for activation, layer in first.items():
        name = activation.name
        if activation not in values:
            values[activation] = (
                _initializer(model.graph, f"{name}.scale", qparams[activation].scale),
                _initializer(model.graph, f"{name}.zero_point", qparams[activation].zero_point),
            )
        scale, zero_point = values[activation]
        node = ir.node("QuantizeLinear", [activation, scale, zero_point], name=f"{layer.name}/quantize")
        node.outputs[0].name = f"{name}.codes"
        layer.graph.insert_before(layer.node, node)
        quantizers[activation] = (node.outputs[0], scale, zero_point)
    return quantizers


def _stage_tables(
    graph: ir.Graph, qparams: Mapping[ir.Value, ActivationQParams], stage_input: str
) -> dict[ir.Value, tuple[ir.Value, ir.Value]]:
    """Scale and zero point of each activation at the current stage, [1] each.

    All of them lie in two tables [S, activations], of which one Gather takes a row and one Split hands it out.
    """
    if not qparams:
        return {}
    (stage,) = (value for value in graph.inputs if value.name == stage_input)
    columns = []
    nodes = []
    for field in ("scale", "zero_point"):
        table = np.stack([getattr(q, field) for q in qparams.values()], axis=1)
        gather = ir.node(
            "Gather", [_initializer(graph, f"activation.{field}s", table), stage], {"axis": 0}, name=f"stage_{field}s"
        )
        gather.outputs[0].name = f"stage_{field}s"
        split = ir.node(
            "Split",
            [gather.outputs[0]],
            {"axis": 0, "num_outputs": len(qparams)},
            num_outputs=len(qparams),
            name=f"stage_{field}s/split",
        )
        for activation, output in zip(qparams, split.outputs, strict=True):
            output.name = f"{activation.name}.{field}"
        columns.append(split.outputs)
        nodes += [gather, split]
    graph.insert_before(graph[0], nodes)
    return dict(zip(qparams, zip(*columns, strict=True), strict=True))


def _insert_dequantizers(
    main: ir.Graph, layer: LinearLayer, codes: ir.Value, scale: ir.Value, zero_point: ir.Value
) -> None:
    """Feed the layer's MatMul from a DequantizeLinear of its own on each side."""
    assert layer.weight.const_value is not None
    quantized = QuantizedWeight.per_channel(layer.weight.const_value.numpy(), axis=1)
    name = str(layer.weight.name)
    weight = [
        _initializer(main, f"{name}.codes", quantized.codes),
        _initializer(main, f"{name}.scale", quantized.scale),
        _initializer(main, f"{name}.zero_point", np.zeros(len(quantized.scale), np.int8)),
    ]
    sides: tuple[tuple[list[ir.Value], dict[str, int], str], ...]
    sides = (([codes, scale, zero_point], {}, "activation"), (weight, {"axis": 1}, "weight"))
    old = layer.weight
    for i, (inputs, attributes, side) in enumerate(sides):
        node = ir.node("DequantizeLinear", inputs, attributes, name=f"{layer.name}/dequantize_{side}")
        node.outputs[0].name = f"{layer.name}.{side}"
        layer.graph.insert_before(layer.node, node)
        layer.node.replace_input_with(i, node.outputs[0])
    if not old.uses():
        del main.initializers[name]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
