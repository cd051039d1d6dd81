"""Make a float16 or bfloat16 model compute in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nextscale.foreign._names import Names, values_of
from nextscale.graph_passes._graph_edit import input_of, is_operator
from nextscale.runtime._errors import NextscaleError

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Attributes of ONNX's own operators that hold an element type.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision")


def float32_inside(model: ir.Model) -> list[str]:
    """Let everything that is float16 or bfloat16 be float32, but for the main graph's inputs and outputs.

    These keep their types by a Cast each. Weights are converted when they are read.

    Returns:
        The names of the types that were there.

    Raises:
        NextscaleError: an input or output is a sequence of such tensors, or a node looks at their bits.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if _is_half(value.type) and not isinstance(value.type, ir.TensorType):
            raise NextscaleError(f"{value.name} is a {value.type} in 16 bits; expected a tensor, or float32")
    for node in graph.all_nodes():
        if is_operator(node, "BitCast") and (_is_half(input_of(node, 0).type) or node.attributes["to"].value in HALVES):
            raise NextscaleError(
                f"BitCast node {node.name} works on the bits of 16-bit floats; expected a float32 model"
            )
    borders = {value: value.type for value in (*graph.inputs, *graph.outputs) if _is_half(value.type)}
    found = set()
    for each in model.graphs():
        for value in values_of(each):
            if value.const_value is not None and value.const_value.dtype in HALVES:
                found.add(value.const_value.dtype)
                value.const_value = as_float32(value.const_value)
            if value.type is not None and _is_half(value.type):
                found.add(value.type.dtype)
                value.type = _in_float32(value.type)
    for node in graph.all_nodes():
        found |= _convert_attributes(node)
    _cast_borders(model, borders)
    return [dtype.name.lower() for dtype in HALVES if dtype in found]


def as_float32(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The tensor in float32, converted whenever it is read."""
    return ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _is_half(kind: ir.TypeProtocol | None) -> bool:
    return kind is not None and kind.dtype in HALVES


def _in_float32(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_in_float32(kind.elem_type))
    return type(kind)(ir.DataType.FLOAT)  # type: ignore[call-arg]


def _convert_attributes(node: ir.Node) -> set[ir.DataType]:
    """Which of the types the node's attributes named."""
    found = set()
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            found.add(attribute.as_tensor().dtype)
            node.attributes[name] = ir.AttrTensor(name, as_float32(attribute.as_tensor()))
        elif node.domain == "" and name in TYPE_ATTRIBUTES and attribute.as_int() in HALVES:
            found.add(ir.DataType(attribute.as_int()))
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    return found


def _cast_borders(model: ir.Model, borders: dict[ir.Value, ir.TypeProtocol | None]) -> None:
    graph, names = model.graph, Names(model)
    for value, kind in borders.items():
        assert kind is not None
        inner = ir.Value(name=names.value(f"{value.name}.float32"), type=ir.TensorType(ir.DataType.FLOAT))
        inner.shape = value.shape
        if value.is_graph_input():
            for node, i in tuple(value.uses()):  # an input may be an output, too, and stays that
                node.replace_input_with(i, inner)
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, outputs=[inner])
            graph.insert_before(graph[0], cast)
            value.type = kind
        else:
            value.name, name = inner.name, value.name
            cast = ir.node("Cast", [value], {"to": kind.dtype})
            (outer,) = cast.outputs
            outer.name, outer.type, outer.shape = name, kind, value.shape
            graph.outputs[list(graph.outputs).index(value)] = outer
            graph.append(cast)
        cast.name = names.node(f"{value.name}.cast")
