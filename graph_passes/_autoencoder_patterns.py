"""Recognise the layers of a float encoder or decoder by structure: convolutions, GroupNorm, SiLU, residuals, attention.

`parse_layers` reads a graph [B, C, H, W] node by node into a flat list of layers, each with the values it reads and
makes. A node that belongs to no known layer is refused with its name and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._graph_edit import input_of, is_operator
from nextscale.runtime._errors import NextscaleError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Convolution:
    """1x1 or 3x3, same size; `upsampled` if nearest x2 comes before it.

    Of stride 2 it is 3x3, padded right and below, and halves the size, which is even.
    """

    name: str
    x: ir.Value
    y: ir.Value
    weight: Floats  # [out, in, ks, ks]
    bias: Floats  # [out]
    upsampled: bool = False
    stride: int = 1

    @property
    def kernel_size(self) -> int:
        return int(self.weight.shape[2])


@dataclass(frozen=True)
class GroupNorm:
    """weight * (x - mean) / sqrt(var + eps) + bias with moments over (C / groups, H, W); then SiLU if `silu`."""

    name: str
    x: ir.Value
    y: ir.Value
    weight: Floats  # [C]
    bias: Floats  # [C]
    groups: int
    eps: float
    silu: bool


@dataclass(frozen=True)
class Residual:
    """y = a + b."""

    name: str
    a: ir.Value
    b: ir.Value
    y: ir.Value


@dataclass(frozen=True)
class Attention:
    """Single-head attention over the pixels, from the qkv convolution's result to the projection's input."""

    name: str
    qkv: ir.Value  # [B, 3C, H, W]; the softmax scale is part of q
    y: ir.Value


@dataclass(frozen=True)
class Pixels:
    """y = x / 127.5 - 1: a picture, uint8 [B, H, W, 3], as numbers [B, 3, H, W]."""

    name: str
    x: ir.Value
    y: ir.Value


@dataclass(frozen=True)
class Picture:
    """y = uint8(clip(round(127.5 x + 127.5), 0, 255)), channels last."""

    name: str
    x: ir.Value
    y: ir.Value


Layer = Convolution | GroupNorm | Residual | Attention | Pixels | Picture


class PatternRefused(NextscaleError):
    """A node is not part of a layer that the pass knows."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"node {node.name!r} ({node.op_type}): {reason}")


def parse_layers(graph: ir.Graph) -> list[Layer]:
    """The graph's layers, in its order.

    Raises:
        PatternRefused: a node is not part of a known layer.
    """
    layers: list[Layer] = []
    done: set[ir.Node] = set()
    recognisers = {
        "Conv": _convolution,
        "Resize": _upsampled_convolution,
        "Add": _residual,
        "Mul": _picture,
        "Cast": _pixels,
    }
    for node in graph:
        if node in done:
            continue
        recognise = recognisers.get(node.op_type, _group_norm if _feeds(node, "InstanceNormalization") else None)
        if node.op_type == "Reshape" and recognise is None:
            recognise = _attention
        if recognise is None or node.domain != "":
            raise PatternRefused(node, "part of no layer of an encoder or decoder")
        layer, nodes = recognise(node)
        done.update(nodes)
        layers.append(layer)
    return layers


def _convolution(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    weight, bias = constant(node, 1), constant(node, 2)
    ks, stride = int(weight.shape[2]), 2 if list(node.attributes.get_ints("strides", [])) == [2, 2] else 1
    pads = [0, 0, 1, 1] if stride == 2 else [ks // 2] * 4
    for name, expected in (("strides", [stride] * 2), ("dilations", [1, 1]), ("pads", pads)):
        found = list(node.attributes.get_ints(name, expected))
        if found != expected:
            raise PatternRefused(node, f"expected {name} {expected}, found {found}")
    if weight.shape[2:] not in ((1, 1), (3, 3)) or node.attributes.get_int("group", 1) != 1:
        raise PatternRefused(node, f"expected an ungrouped 1x1 or 3x3 kernel, found weights {list(weight.shape)}")
    if ks == 3 and "pads" not in node.attributes:
        raise PatternRefused(node, "a 3x3 convolution without padding changes the size")
    if stride == 2 and ks == 1:
        raise PatternRefused(node, "expected a 3x3 kernel of stride 2")
    return Convolution(_name(node), input_of(node, 0), node.outputs[0], weight, bias, stride=stride), [node]


def _upsampled_convolution(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    """Nearest x2 -> Conv 3x3."""
    scales = constant(node, 2)
    modes = {
        "mode": "nearest",
        "nearest_mode": "floor",
        "coordinate_transformation_mode": "asymmetric",
    }
    found = {name: node.attributes.get_string(name) for name in modes}
    if found != modes or scales.tolist() != [1, 1, 2, 2]:
        raise PatternRefused(node, f"expected nearest upsampling x2, found {found} with scales {scales.tolist()}")
    (conv,) = _chain(node, "Conv")
    layer, _ = _convolution(conv)
    assert isinstance(layer, Convolution)
    if layer.kernel_size != 3 or layer.stride != 1:
        raise PatternRefused(conv, "expected a 3x3 kernel of stride 1 after upsampling")
    upsampled = Convolution(layer.name, input_of(node, 0), layer.y, layer.weight, layer.bias, upsampled=True)
    return upsampled, [node, conv]


def _group_norm(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    """Reshape [B, groups, -1] -> InstanceNormalization -> Reshape back -> Mul -> Add, then perhaps x * Sigmoid(x)."""
    shape = constant(node, 1)
    norm, back, mul, add = _chain(node, "InstanceNormalization", "Reshape", "Mul", "Add")
    if len(shape) != 3 or shape[0] != 0 or shape[2] != -1:
        raise PatternRefused(node, f"expected the shape [0, groups, -1], found {shape.tolist()}")
    if np.any(constant(norm, 1) != 1) or np.any(constant(norm, 2) != 0):
        raise PatternRefused(norm, "expected an InstanceNormalization without an affine of its own")
    weight, bias = (constant(affine, 1) for affine in (mul, add))
    for affine, parameter in ((mul, weight), (add, bias)):
        if parameter.ndim != 3 or parameter.shape[1:] != (1, 1) or len(parameter) % shape[1]:
            raise PatternRefused(affine, f"expected an affine [C, 1, 1], found {list(parameter.shape)}")
    nodes = [node, norm, _shape_of(back, input_of(node, 0)), back, mul, add]
    y = add.outputs[0]
    silu = _silu(y)
    if silu:
        nodes += silu
        y = silu[-1].outputs[0]
    eps = norm.attributes.get_float("epsilon", 1e-5)
    layer = GroupNorm(_name(norm), input_of(node, 0), y, weight.ravel(), bias.ravel(), int(shape[1]), eps, bool(silu))
    return layer, nodes


def _silu(x: ir.Value) -> list[ir.Node]:
    """Sigmoid and Mul if x is read by x * Sigmoid(x) and by nothing else."""
    readers = {node.op_type: node for node in x.consumers() if node.domain == ""}
    if set(readers) != {"Sigmoid", "Mul"}:
        return []
    sigmoid, mul = readers["Sigmoid"], readers["Mul"]
    is_silu = set(mul.inputs) == {x, sigmoid.outputs[0]} and len(sigmoid.outputs[0].consumers()) == 1
    return [sigmoid, mul] if is_silu else []


def _residual(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    a, b = input_of(node, 0), input_of(node, 1)
    if a.const_value is not None or b.const_value is not None:
        raise PatternRefused(node, "expected the sum of two activations, found a constant")
    return Residual(_name(node), a, b, node.outputs[0]), [node]


def _attention(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    """Reshape [B, 3C, HW] -> Split -> softmax(q.T k) -> v softmax.T -> Reshape [B, C, H, W]."""
    (split,) = _chain(node, "Split")
    if constant(node, 1).tolist() != [0, 0, -1] or len(split.outputs) != 3 or split.attributes.get_int("axis") != 1:
        raise PatternRefused(node, "expected [0, 0, -1] and a Split of the channels into q, k and v")
    q, k, v = split.outputs
    query, scores, softmax, weights, mix, back = _chain(
        _sole_reader(q), "MatMul", "Softmax", "Transpose", "MatMul", "Reshape", include_first=True
    )
    if list(scores.inputs) != [query.outputs[0], k] or list(mix.inputs) != [v, weights.outputs[0]]:
        raise PatternRefused(scores, "expected q.T k and v weights.T of one Split")
    for transpose in (query, weights):
        if not is_operator(transpose, "Transpose") or list(transpose.attributes.get_ints("perm", [])) != [0, 2, 1]:
            raise PatternRefused(transpose, "expected a Transpose of the last two axes")
    if softmax.attributes.get_int("axis", -1) not in (-1, 2):
        raise PatternRefused(softmax, "expected a Softmax over the keys")
    nodes = [node, split, query, scores, softmax, weights, mix, _shape_of(back), back]
    return Attention(_name(scores), input_of(node, 0), back.outputs[0]), nodes


def _pixels(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    """Cast -> Transpose -> Div 127.5 -> Sub 1."""
    transpose, div, sub = _chain(node, "Transpose", "Div", "Sub")
    found = [float(constant(div, 1)), float(constant(sub, 1))]
    if found != [127.5, 1] or list(transpose.attributes.get_ints("perm", [])) != [0, 3, 1, 2]:
        raise PatternRefused(node, f"expected x / 127.5 - 1, channels first, found {found}")
    if node.attributes.get_int("to") != ir.DataType.FLOAT:
        raise PatternRefused(node, "expected numbers of float32")
    return Pixels(_name(node), input_of(node, 0), sub.outputs[0]), [node, transpose, div, sub]


def _picture(node: ir.Node) -> tuple[Layer, list[ir.Node]]:
    """Mul 127.5 -> Add 127.5 -> Round -> Clip -> Cast -> Transpose."""
    add, round_, clip, cast, transpose = _chain(node, "Add", "Round", "Clip", "Cast", "Transpose")
    found = [float(constant(*where)) for where in ((node, 1), (add, 1), (clip, 1), (clip, 2))]
    if found != [127.5, 127.5, 0, 255] or list(transpose.attributes.get_ints("perm", [])) != [0, 2, 3, 1]:
        raise PatternRefused(node, f"expected 127.5 x + 127.5 clipped to [0, 255], channels last, found {found}")
    if cast.attributes.get_int("to") != ir.DataType.UINT8:
        raise PatternRefused(cast, "expected a picture of uint8")
    return Picture(_name(node), input_of(node, 0), transpose.outputs[0]), [node, add, round_, clip, cast, transpose]


def _shape_of(reshape: ir.Node, like: ir.Value | None = None) -> ir.Node:
    """The Shape node (of `like`) that a Reshape back to four dimensions takes its shape from."""
    shape = input_of(reshape, 1).producer()
    if shape is None or not is_operator(shape, "Shape") or (like is not None and input_of(shape, 0) is not like):
        raise PatternRefused(reshape, f"expected the shape of {like.name!r}" if like else "expected a Shape's result")
    return shape


def constant(node: ir.Node, index: int) -> NDArray:
    """The constant input `index` of a node."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        raise PatternRefused(node, f"input {index} is not constant")
    return value.const_value.numpy()


def _chain(node: ir.Node, *op_types: str, include_first: bool = False) -> list[ir.Node]:
    """The nodes after `node`, each the only reader of the one before, with these operators."""
    nodes = [node]
    for op_type in op_types:
        reader = _sole_reader(nodes[-1].outputs[0])
        if not is_operator(reader, op_type):
            raise PatternRefused(nodes[-1], f"expected {op_type} behind it, found {reader.op_type} {reader.name!r}")
        nodes.append(reader)
    return nodes if include_first else nodes[1:]


def _sole_reader(value: ir.Value) -> ir.Node:
    readers = value.consumers()
    if len(readers) != 1 or value.is_graph_output():
        producer = value.producer()
        assert producer is not None
        raise PatternRefused(producer, f"expected one reader of {value.name!r}, found {len(readers)}")
    return readers[0]


def _feeds(node: ir.Node, op_type: str) -> bool:
    return any(is_operator(reader, op_type) for reader in node.outputs[0].consumers())


def _name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name
