"""Find a graph's linear layers, and give them integer weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._graph_edit import Body, add_initializer, is_operator, replace, splice
from nextscale.graph_passes.qparams import QuantizedWeight, RangeRule

WEIGHT_SUFFIX, CODES_SUFFIX, PACKED_SUFFIX, ZERO_SUFFIX = ".weight", ".codes", ".packed", ".zero_point"

# A layer's name and its weight float32 [K, N] to its codes; N is axis 1.
WeightRounder = Callable[[str, NDArray[np.float32]], QuantizedWeight]


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
        weight = node.inputs[1] if is_operator(node, "MatMul") else None
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2:
            layers.append(LinearLayer(node, graph))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                layers += linear_layers(attribute.as_graph())
    return layers


def linear_layer_shapes(graph: ir.Graph) -> dict[str, tuple[int, int]]:
    """[out, in] of a graph's linear layers by name; integer weights are named after theirs."""
    weights = {layer.name: layer.weight for layer in linear_layers(graph)}
    for name, weight in graph.initializers.items():
        for suffix in (CODES_SUFFIX, PACKED_SUFFIX):
            if name.endswith(WEIGHT_SUFFIX + suffix):
                weights[name.removesuffix(WEIGHT_SUFFIX + suffix)] = weight
    shapes = {}
    for name, weight in weights.items():
        assert weight.const_value is not None
        features_in, features_out = weight.const_value.shape.numpy()
        shapes[name] = (int(features_out), int(features_in))
    return shapes


def find_layers(graph: ir.Graph, names: set[str]) -> list[LinearLayer]:
    """The linear layers with these names.

    Raises:
        ValueError: a name is not a linear layer of the graph.
    """
    layers = [layer for layer in linear_layers(graph) if layer.name in names]
    missing = names - {layer.name for layer in layers}
    if missing:
        raise ValueError(f"no MatMul with a constant 2-D weight is named {sorted(missing)[0]!r}")
    return layers


def nearest(bits: int = 8, rule: RangeRule = "max") -> WeightRounder:
    """Round to nearest, a scale for each output channel."""
    return lambda name, weight: QuantizedWeight.per_channel(weight, 1, bits, rule)


def reduced_range(bits: int, rule: RangeRule, activation_bits: int) -> WeightRounder:
    """Round to nearest, in steps so coarse that no pair of products leaves 16 bits."""
    return lambda name, weight: QuantizedWeight.reduced_range(weight, 1, bits, rule, activation_bits)


@dataclass(frozen=True)
class IntegerWeight:
    """A layer's weight in the graph: codes s8 [K, N], scale float32 [N], and the sums of the codes, int64 [N]."""

    codes: ir.Value
    scale: ir.Value
    sums: NDArray[np.int64]


def insert_integer_weight(main: ir.Graph, layer: LinearLayer, rounder: WeightRounder, packed: bool) -> IntegerWeight:
    """Add the codes and scales of the layer's weight to the graph; the float weight stays until `drop_unused`.

    With `packed` the codes are stored as UINT4 and turned into s8 by two operators, which ONNX Runtime folds when it
    loads the graph. Layers that share a weight share its codes, which are those of the first of them.
    """
    assert layer.weight.const_value is not None
    name = str(layer.weight.name)
    if f"{name}.scale" in main.initializers:
        return _inserted(main, name)
    quantized = rounder(layer.name, layer.weight.const_value.numpy())
    scale = add_initializer(main, f"{name}.scale", quantized.scale)
    codes = _unpacked(main, name, quantized) if packed else add_initializer(main, name + CODES_SUFFIX, quantized.codes)
    return IntegerWeight(codes, scale, quantized.codes.sum(axis=0, dtype=np.int64))


def _inserted(main: ir.Graph, name: str) -> IntegerWeight:
    """The weight `name` as an earlier layer had it inserted."""
    scale, codes = main.initializers[f"{name}.scale"], main.initializers.get(name + CODES_SUFFIX)
    if codes is not None:
        assert codes.const_value is not None
        return IntegerWeight(codes, scale, codes.const_value.numpy().sum(axis=0, dtype=np.int64))
    center = next(node for node in main if node.name == f"{name}/center")
    stored, zero = (main.initializers[name + end].const_value for end in (PACKED_SUFFIX, ZERO_SUFFIX))
    assert stored is not None
    assert zero is not None
    numbers = stored.numpy().astype(np.int64) - zero.numpy()
    return IntegerWeight(center.outputs[0], scale, numbers.sum(axis=0))


def _unpacked(main: ir.Graph, name: str, quantized: QuantizedWeight) -> ir.Value:
    uint4 = partial(ir.tensor, dtype=ir.DataType.UINT4)
    stored = (quantized.codes.astype(np.int16) - quantized.qmin).astype(np.uint8).astype(ml_dtypes.uint4)
    source = add_initializer(main, name + PACKED_SUFFIX, uint4(stored, name=name + PACKED_SUFFIX))
    zero = add_initializer(main, name + ZERO_SUFFIX, (-quantized.qmin.astype(np.int16)).astype(np.int8)[None])
    cast = ir.node("Cast", [source], {"to": ir.DataType.INT8}, name=f"{name}/unpack")
    cast.outputs[0].name = f"{name}.unpacked"
    center = ir.node("Sub", [cast.outputs[0], zero], name=f"{name}/center")
    (codes,) = center.outputs
    codes.name, codes.shape, codes.dtype = name + CODES_SUFFIX, ir.Shape(stored.shape), ir.DataType.INT8
    main.insert_before(main[0], [cast, center])
    return codes


def drop_unused(main: ir.Graph, weight: ir.Value) -> None:
    """Remove a float weight that no layer reads any more."""
    if not weight.uses() and not weight.is_graph_output():
        del main.initializers[str(weight.name)]


def sharing(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Layers with the same input together, in order."""
    groups: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.activation, []).append(layer)
    return list(groups.values())


def substitute(model: ir.Model, layer: LinearLayer, operands: Sequence[ir.Value], body: Body, with_bias: bool) -> None:
    """Put what `body` builds in the place of the layer's MatMul, and of the Add of its bias if that is among it."""
    float_weight, node = layer.weight, layer.node
    old = _consumer(layer) if with_bias else node
    assert old is not None
    (product,) = splice(layer.graph, f"{layer.name}/integer", operands, body, before=old)
    replace(old.outputs[0], product)
    if with_bias:
        layer.graph.remove(node, safe=True)
    drop_unused(model.graph, float_weight)


def _consumer(layer: LinearLayer) -> ir.Node | None:
    """The only one, if it is in the layer's own graph."""
    uses = tuple(layer.node.outputs[0].uses())
    return uses[0][0] if len(uses) == 1 and uses[0][0].graph is layer.graph else None


def layer_bias(layer: LinearLayer) -> ir.Value | None:
    """The constant [N] that the only consumer adds, if it does."""
    consumer = _consumer(layer)
    if consumer is None or not is_operator(consumer, "Add") or layer.node.outputs[0].is_graph_output():
        return None
    bias = consumer.inputs[0] if consumer.inputs[1] is layer.node.outputs[0] else consumer.inputs[1]
    if bias is None or bias.const_value is None or layer.weight.const_value is None:
        return None
    return bias if bias.const_value.shape.numpy() == layer.weight.const_value.shape.numpy()[1:] else None
