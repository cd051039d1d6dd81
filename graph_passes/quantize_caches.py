"""Carried keys and values in 8 bits, with a range for each token and head (docs/quantization.md, "Caches").

    past, new -> Concat -> present   becomes   past codes, new -> codes -> Concat -> present codes -> dequantized
                                               past scales,   -> scales -> Concat -> present scales ---+
    Attention                        becomes   CodesAttention, which takes and gives codes and scales

All that attention reads is what the codes say, of this stage's tokens too: a token is the same number in all stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._dynamic_ranges import quantize_tokens
from nextscale.graph_passes._fused_nodes import OPERATORS, attribute_values
from nextscale.graph_passes._graph_edit import constant, input_of, is_operator, splice
from nextscale.runtime._memory import PAST

ZERO_POINT, BITS = 128, 8
SCALE = "_scale"  # what the scales' names have behind the caches'
# Of Attention: its caches among its inputs and its outputs. In CodesAttention two scales follow the first six inputs,
# and the outputs.
_PAST, _PRESENT, _BEFORE_SCALES = (3, 4), (3, 4), 6


@dataclass(frozen=True)
class Refusal:
    """A cache that stays in float32, and why."""

    cache: str
    reason: str

    def __str__(self) -> str:
        return f"{self.cache}: {self.reason}"


@dataclass(frozen=True)
class _Cache:
    """Keys [R, H, d, T] or values [R, H, T, d] of all blocks' earlier tokens.

    Attributes:
        past: the graph's input.
        node: a Concat that appends this stage's to it, or Attention.
        axis: of the tokens.
    """

    past: ir.Value
    node: ir.Node
    axis: int


def quantize_caches(model: ir.Model) -> ir.Model:
    """A copy of `model` whose caches of keys and values are u8 with a scale for each token of a head.

    A cache is a float32 input of four dimensions, one of which is PAST. It becomes u8 of the same name and shape, and
    behind it comes `{name}_scale`, float32, with 1 in the place of the channels; the output that continues it likewise.
    Caches that are not of this form stay as they are (`unquantized_caches`), and so does a model without any.
    """
    model = model.clone()
    for past in _caches_of(model):
        found = _match(model.graph, past)
        if isinstance(found, Refusal):
            continue
        if is_operator(found.node, "Concat"):
            _quantize_concat(model.graph, found)
        elif is_operator(found.node, "Attention", OPERATORS):
            _take_codes(model.graph, found.node)
    return model


def unquantized_caches(model: ir.Model) -> list[Refusal]:
    """The caches in float32 that would stay so, and why."""
    found = (_match(model.graph, past) for past in _caches_of(model))
    return [item for item in found if isinstance(item, Refusal)]


def _caches_of(model: ir.Model) -> list[ir.Value]:
    """In the order of the inputs; the scales of codes, one for each token, are none."""
    return [
        value
        for value in model.graph.inputs
        if value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) == 4
        and any(_is_past(size) for size in value.shape)
        and 1 not in value.shape[2:]
    ]


def _is_past(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, ir.SymbolicDim) and size.value == PAST


def _match(graph: ir.Graph, past: ir.Value) -> _Cache | Refusal:
    name, uses = str(past.name), tuple(past.uses())
    if len(uses) != 1 or past.is_graph_output():
        return Refusal(name, f"{len(uses)} nodes read it, expected the one that adds this stage's tokens")
    (node, place), shape = uses[0], past.shape
    assert shape is not None
    axis = next(i for i, size in enumerate(shape) if _is_past(size))
    if is_operator(node, "Attention", OPERATORS) and place in _PAST:
        return _Cache(past, node, axis)
    if not is_operator(node, "Concat") or place != 0 or len(node.inputs) != 2 or axis < 2:
        return Refusal(name, f"{node.name} is {node.op_type}, no Concat of it and this stage's tokens")
    if node.attributes.get_int("axis", 0) not in (axis, axis - 4):
        return Refusal(name, f"{node.name} joins another axis than that of the tokens")
    if not node.outputs[0].is_graph_output():
        return Refusal(name, f"{node.outputs[0].name} is no output of the graph")
    return _Cache(past, node, axis)


def _quantize_concat(graph: ir.Graph, cache: _Cache) -> None:
    past, node, axis = cache.past, cache.node, cache.axis
    present = node.outputs[0]
    scales = _becomes_codes(graph, past)

    def body(op: OpBuilder, codes: ir.Value, scale: ir.Value, new: ir.Value) -> list[ir.Value]:
        # Ranges are of the last axis, the channels.
        turned = [0, 1, 3, 2]
        of_tokens = new if axis == 2 else op.Transpose(new, perm=turned)
        new_codes, new_scale = quantize_tokens(op, of_tokens, ZERO_POINT, BITS, rank=4)
        if axis != 2:
            new_codes, new_scale = (op.Transpose(x, perm=turned) for x in (new_codes, new_scale))
        codes, scale = op.Concat(codes, new_codes, axis=axis), op.Concat(scale, new_scale, axis=axis)
        one = constant(op, "one", np.array(1, np.float32))
        centred = op.DequantizeLinear(codes, one, constant(op, "zero_point", np.array(ZERO_POINT, np.uint8)))
        return [codes, scale, op.Mul(centred, scale)]

    operands = [past, scales, input_of(node, 1)]
    codes, scale, dequantized = splice(graph, f"{past.name}/codes", operands, body, before=node)
    dequantized.type, dequantized.shape = present.type, present.shape
    _gives_codes(graph, present, codes, scale)
    present.replace_all_uses_with(dequantized)
    graph.remove(node, safe=True)


def _take_codes(graph: ir.Graph, node: ir.Node) -> None:
    """Both caches of an Attention at once."""
    pasts = [input_of(node, i) for i in _PAST]
    scales = [_becomes_codes(graph, past) for past in pasts]
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    made = [*outputs, *(ir.Value() for _ in _PRESENT)]
    inputs = [*node.inputs[:_BEFORE_SCALES], *scales, *node.inputs[_BEFORE_SCALES:]]
    attributes = ir.convenience.convert_attributes(attribute_values(node))
    new = ir.Node(OPERATORS, "CodesAttention", inputs, attributes, outputs=made, name=node.name)
    graph.insert_before(node, new)
    for i, (old, value) in enumerate(zip(node.outputs, outputs, strict=True)):
        if i in _PRESENT:
            _gives_codes(graph, old, value, made[len(outputs) + _PRESENT.index(i)])
        else:
            old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _becomes_codes(graph: ir.Graph, past: ir.Value) -> ir.Value:
    """Let an input be codes; returns that of their scales, behind it."""
    scales = ir.Value(name=f"{past.name}{SCALE}", type=ir.TensorType(ir.DataType.FLOAT), shape=_of_tokens(past.shape))
    past.type = ir.TensorType(ir.DataType.UINT8)  # a clone shares its types
    graph.inputs.insert(graph.inputs.index(past) + 1, scales)
    return scales


def _gives_codes(graph: ir.Graph, present: ir.Value, codes: ir.Value, scales: ir.Value) -> None:
    """Let codes and, behind them, their scales be outputs in place of a cache in float32."""
    name, shape = str(present.name), present.shape
    place = graph.outputs.index(present)
    present.name = f"{name}.float"
    for value, its_name, its_type in ((codes, name, ir.DataType.UINT8), (scales, f"{name}{SCALE}", ir.DataType.FLOAT)):
        value.name, value.type = its_name, ir.TensorType(its_type)
    codes.shape, scales.shape = shape, _of_tokens(shape)
    graph.outputs[place] = codes
    graph.outputs.insert(place + 1, scales)


def _of_tokens(shape: ir.Shape | None) -> ir.Shape:
    """The scales' shape: one for all channels, whose number alone of the last two is known."""
    assert shape is not None
    return ir.Shape([*shape[:2], *(1 if isinstance(size, int) else size for size in shape[2:])])
