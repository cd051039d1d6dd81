"""Fold what follows a convolution, and is a factor or a summand by channel, into its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import add_initializer, constant_input, is_operator
from nextscale.graph_passes.linear_layers import drop_unused

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class _Affine:
    """y = gain x + offset, by channel, of a convolution's output: [C] each."""

    gain: Floats
    offset: Floats


def fold_into_convolutions(model: ir.Model) -> int:
    """Fold BatchNormalization, and constant factors and summands of channels, behind a Conv of a constant weight.

    Returns how many nodes were folded.
    """
    names, folded = Names(model), 0
    for conv in [node for node in model.graph if is_operator(node, "Conv")]:
        while (step := _next(conv)) is not None:
            node, affine = step
            if not _fold(model.graph, conv, affine, names):
                break
            node.outputs[0].replace_all_uses_with(conv.outputs[0])
            model.graph.remove(node, safe=True)
            folded += 1
    return folded


def _next(conv: ir.Node) -> tuple[ir.Node, _Affine] | None:
    """The node that alone reads a convolution's output, if it can be folded, and what it does."""
    (y,) = conv.outputs
    uses = tuple(y.uses())
    weight, bias = (_constant(conv, i) for i in (1, 2))
    if len(uses) != 1 or y.is_graph_output() or weight is None or (bias is None and _has(conv, 2)):
        return None
    ((node, _),) = uses
    if node.graph is not conv.graph or node.outputs[0].is_graph_output():
        return None
    if is_operator(node, "BatchNormalization"):
        affine = _batch_norm(node)
    elif node.op_type in ("Mul", "Add", "Sub", "Div") and node.domain == "":
        affine = _by_channel(node, y, len(weight), weight.ndim)
    else:
        affine = None
    return None if affine is None else (node, affine)


def _batch_norm(node: ir.Node) -> _Affine | None:
    """Of inference."""
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1 or node.inputs[0] is None:
        return None
    constants = [_constant(node, i) for i in range(1, 5)]
    if any(found is None or found.ndim != 1 for found in constants):
        return None
    scale, bias, mean, variance = (np.asarray(found, np.float64) for found in constants)
    with np.errstate(all="ignore"):  # what is not finite is not folded
        gain = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return _Affine(gain, bias - mean * gain)


def _by_channel(node: ir.Node, y: ir.Value, channels: int, axes: int) -> _Affine | None:
    """Of y and a constant that is one number, or one for each channel [C, 1, ...] or [1, C, 1, ...]."""
    i = 1 if node.inputs[0] is y else 0
    constant = _constant(node, i)
    if constant is None or (i == 0 and node.op_type == "Div"):
        return None
    shape = (1,) * (axes - constant.ndim) + constant.shape
    if len(shape) != axes or any(size != 1 for place, size in enumerate(shape) if place != 1):
        return None
    if shape[1] not in (1, channels):
        return None
    value = np.broadcast_to(np.asarray(constant, np.float64).reshape(-1), channels)
    ones, zeros = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return _Affine(value, zeros)
        case "Div":
            return _Affine(1 / value, zeros) if value.all() else None
        case "Add":
            return _Affine(ones, value)
        case _:
            return _Affine(ones, -value) if i == 1 else _Affine(-ones, value)


def _fold(graph: ir.Graph, conv: ir.Node, affine: _Affine, names: Names) -> bool:
    """Whether it was possible: not where a number would not be finite."""
    weight, bias = _constant(conv, 1), _constant(conv, 2)
    assert weight is not None
    old = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    gain = affine.gain.reshape(-1, *[1] * (weight.ndim - 1))
    with np.errstate(all="ignore"):
        made = (weight * gain).astype(weight.dtype), (old * affine.gain + affine.offset).astype(weight.dtype)
    if not all(np.isfinite(found).all() for found in made):
        return False
    for i, found in enumerate(made, 1):
        _replace(graph, conv, i, found, names)
    return True


def _replace(graph: ir.Graph, conv: ir.Node, i: int, made: Floats, names: Names) -> None:
    old = conv.inputs[i] if i < len(conv.inputs) else None
    like = "bias" if old is None else old.name
    new = add_initializer(graph, names.value(f"{like}.folded"), made)
    conv.resize_inputs(max(i + 1, len(conv.inputs)))
    conv.replace_input_with(i, new)
    if old is not None:
        drop_unused(graph, old)


def _has(node: ir.Node, i: int) -> bool:
    return len(node.inputs) > i and node.inputs[i] is not None


def _constant(node: ir.Node, i: int) -> Floats | None:
    return constant_input(node, i, ir.DataType.FLOAT, ir.DataType.DOUBLE)
