"""Write a transposed convolution as a convolution whose channels become pixels, for which there are integer kernels.

Along each axis, of stride s and kernel K, before the pads cut off its ends:

    y[s i + r] = sum_j W[s j + r] x[i - j]        0 <= r < s,  0 <= s j + r < K

What has one r is a convolution of stride 1 and T = ceil(K / s) taps. One Conv makes all of them side by side, as
channels c s + r; DepthToSpace puts them in place, or Reshape and Transpose where there are not two axes of one stride;
and Slice cuts off what is too much. Where s divides K, it multiplies no more than before, but for the borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import (
    constant,
    constant_input,
    input_of,
    is_operator,
    number_of,
    replace,
    splice,
)

# Multiplications for each number that it reads or gives. From here on this form is faster in integers, 1.2 times and
# more; in float it is at times slower.
LEAST_WORK = 40
TO_THE_END = int(np.iinfo(np.int64).max)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Axis:
    """One of those that a kernel moves along.

    Attributes:
        kernel, stride: K and s.
        begin, end: how many numbers the pads cut off there; fewer than none where the output is padded.
        size: of the input; None where it is unknown.
    """

    kernel: int
    stride: int
    begin: int
    end: int
    size: int | None

    @property
    def taps(self) -> int:
        return -(-self.kernel // self.stride)

    @property
    def pads(self) -> tuple[int, int]:
        """Of the Conv, which makes no i that is cut off whole."""
        return self.taps - 1 - self.begin // self.stride, -((self.end - self.kernel) // self.stride) - 1

    @property
    def excess(self) -> tuple[int, int]:
        """How many pixels are too much at both ends."""
        return self.begin % self.stride, (self.end - self.kernel) % self.stride

    @property
    def made(self) -> int:
        """How many i the Conv makes; -1, as Reshape has it, where that is unknown."""
        return -1 if self.size is None else self.size + sum(self.pads) - self.taps + 1


def write_transposed(model: ir.Model) -> int:
    """Let each ConvTranspose be a Conv, and what makes pixels of its channels; how many there were.

    The Conv has its name. BatchNormalization, Relu and Clip behind it come before the pixels, where they can go into
    the Conv or its codes. One stays where `why_transposed` says why.
    """
    names = Names(model)
    nodes = [node for node in model.graph if is_operator(node, "ConvTranspose") and why_transposed(node) is None]
    for node in nodes:
        _write(model.graph, node, names)
    return len(nodes)


def why_transposed(node: ir.Node) -> str | None:
    """Why a ConvTranspose of a main graph stays one; None where it does not."""
    weight, attributes = _constant(node, 1), node.attributes
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    if weight is None or (len(node.inputs) > 2 and node.inputs[2] is not None and _constant(node, 2) is None):
        return "its weight or bias is computed, or not float32"
    if auto_pad not in ("NOTSET", "VALID"):
        return f"its auto_pad is {auto_pad}"
    if "output_shape" in attributes:
        return "its pads follow from output_shape"
    if any(step != 1 for step in attributes.get_ints("dilations", [])):
        return "it is dilated"
    axes = _axes(node, weight)
    if any(min(axis.begin, *axis.pads) < 0 for axis in axes):
        return "its pads are negative, or cut off more than its kernel"
    if not _is_square(axes) and sum(axis.size is None for axis in axes) > 1:
        return f"it has {len(axes)} axes, not all of one stride or not two, and several are of unknown size"
    # Numbers read and given, for each place of the input.
    moved = len(weight) + weight.shape[1] * attributes.get_int("group", 1) * _pixels(axes)
    if weight.size < LEAST_WORK * moved:
        work = weight.size / moved
        return f"{work:.3g} multiplications for each number that it reads or gives: less work than to move these"
    if [node, *_followers(node)][-1].outputs[0].is_graph_output():
        return "its result is an output of the model, which 8 bits would be too few for"
    return None


def _axes(node: ir.Node, weight: Floats) -> list[_Axis]:
    rank, attributes, shape = weight.ndim - 2, node.attributes, input_of(node, 0).shape
    no_pads = [0] * 2 * rank
    pads = no_pads if attributes.get_string("auto_pad", "") == "VALID" else attributes.get_ints("pads", no_pads)
    strides, more = attributes.get_ints("strides", [1] * rank), attributes.get_ints("output_padding", [0] * rank)
    sizes = [None] * rank if shape is None else [size if isinstance(size, int) else None for size in shape[2:]]
    return [
        _Axis(int(weight.shape[2 + i]), strides[i], pads[i], pads[rank + i] - more[i], sizes[i]) for i in range(rank)
    ]


def _pixels(axes: Sequence[_Axis]) -> int:
    """For each place of the input."""
    return math.prod(axis.stride for axis in axes)


def _is_square(axes: Sequence[_Axis]) -> bool:
    """Whether DepthToSpace can make the pixels."""
    return len(axes) == 2 and axes[0].stride == axes[1].stride


def _followers(node: ir.Node) -> list[ir.Node]:
    """What comes behind, each reading alone, and does with a number what its channel asks for."""
    found = [node]
    while True:
        y = found[-1].outputs[0]
        readers = [reader for reader, _ in y.uses()]
        if len(readers) != 1 or y.is_graph_output() or readers[0].graph is not node.graph:
            return found[1:]
        if not _is_by_channel(readers[0], y):
            return found[1:]
        found += readers


def _is_by_channel(node: ir.Node, x: ir.Value) -> bool:
    if is_operator(node, "BatchNormalization"):
        is_fixed = all(_constant(node, i) is not None for i in range(1, 5))
        return is_fixed and len(node.outputs) == 1 and not node.attributes.get_int("training_mode", 0)
    ends = [value for value in node.inputs if value not in (None, x)]
    return is_operator(node, "Relu") or (is_operator(node, "Clip") and all(number_of(end) is not None for end in ends))


def _write(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    nodes = [node, *_followers(node)]

    def body(op: OpBuilder, x: ir.Value) -> list[ir.Value]:
        return _build(op, x, nodes)

    made, pixels = splice(graph, names.node(f"{node.name}.pixels"), [input_of(node, 0)], body, node)
    replace(nodes[-1].outputs[0], pixels)
    for old in reversed(nodes[:-1]):
        graph.remove(old, safe=True)
    conv = made.producer()
    assert conv is not None
    conv.name = node.name


def _build(op: OpBuilder, x: ir.Value, nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What the Conv makes, and the pixels."""
    node, *followers = nodes
    weight, groups = _constant(node, 1), node.attributes.get_int("group", 1)
    assert weight is not None
    axes = _axes(node, weight)
    pads = [pad for ends in zip(*(axis.pads for axis in axes), strict=True) for pad in ends]
    operands = constant(op, "weight", _kernel(weight, groups, axes)), *_constants(op, node, 2, _pixels(axes))
    conv = y = op.Conv(x, *operands, pads=pads, group=groups)
    for old in followers:
        copies = _pixels(axes) if is_operator(old, "BatchNormalization") else 1
        attributes = {name: attribute.value for name, attribute in old.attributes.items()}
        y = getattr(op, old.op_type)(y, *_constants(op, old, 1, copies), **attributes)
    y = _as_pixels(op, y, axes, weight.shape[1] * groups)
    begins, ends = zip(*(axis.excess for axis in axes), strict=True)
    if any([*begins, *ends]):
        y = op.Slice(y, [*begins], [-end or TO_THE_END for end in ends], [*range(2, 2 + len(axes))])
    return [conv, y]


def _constants(op: OpBuilder, node: ir.Node, first: int, copies: int) -> list[ir.Value | None]:
    """A node's inputs from `first` on, with copies of each of their numbers."""
    arrays = [_constant(node, i) for i in range(first, len(node.inputs))]
    return [
        None if array is None else constant(op, f"{node.name}.{i}", array if copies == 1 else array.repeat(copies))
        for i, array in enumerate(arrays, first)
    ]


def _kernel(weight: Floats, groups: int, axes: Sequence[_Axis]) -> Floats:
    """[C_in, C_out / groups, K, ...] -> [C_out s ..., C_in / groups, T, ...]."""
    weight = np.pad(weight, [(0, 0), (0, 0), *((0, axis.taps * axis.stride - axis.kernel) for axis in axes)])
    split = [size for axis in axes for size in (axis.taps, axis.stride)]
    inputs, outputs = len(weight) // groups, weight.shape[1]
    weight = weight.reshape(groups, inputs, outputs, *split)
    taps, steps = range(3, 3 + len(split), 2), range(4, 4 + len(split), 2)
    weight = np.flip(weight, tuple(taps)).transpose(0, 2, *steps, 1, *taps)
    return np.ascontiguousarray(weight).reshape(-1, inputs, *split[::2])


def _as_pixels(op: OpBuilder, y: ir.Value, axes: Sequence[_Axis], channels: int) -> ir.Value:
    """[N, C s ..., n, ...] -> [N, C, n s, ...]."""
    strides = [axis.stride for axis in axes]
    if _pixels(axes) == 1:
        return y
    if _is_square(axes):
        return op.DepthToSpace(y, blocksize=strides[0], mode="CRD")
    rank = len(axes)
    y = op.Reshape(y, [0, channels, *strides, *(axis.made for axis in axes)])
    y = op.Transpose(y, perm=[0, 1, *(axis for i in range(rank) for axis in (2 + rank + i, 2 + i))])
    return op.Reshape(y, [0, channels, *(max(axis.made * axis.stride, -1) for axis in axes)])


def _constant(node: ir.Node, i: int) -> Floats | None:
    return constant_input(node, i, ir.DataType.FLOAT)
