"""Find a graph's convolutions, each with the result that it is read as."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import input_of, is_operator, number_of
from nextscale.graph_passes.observe_inputs import Input


@dataclass(frozen=True)
class ConvolutionLayer:
    """A Conv of a main graph with a constant weight [out, in / groups, ...].

    Attributes:
        node: the Conv.
        last: whose output is its result: a Relu, or a Clip around zero, that alone reads the Conv's; or the Conv.
    """

    node: ir.Node
    last: ir.Node

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def activation(self) -> ir.Value:
        return input_of(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        return input_of(self.node, 1)

    @property
    def bias(self) -> ir.Value | None:
        """[out]."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def result(self) -> ir.Value:
        return self.last.outputs[0]

    @property
    def other_axes(self) -> tuple[int, ...]:
        """All axes of its input and its result but the channels'."""
        assert self.weight.const_value is not None
        return tuple(axis for axis in range(len(self.weight.const_value.shape)) if axis != 1)

    @property
    def work(self) -> float:
        """Multiplications for each number that it reads: k^2 out / (groups stride^2)."""
        assert self.weight.const_value is not None
        out, _, *kernel = (int(size) for size in self.weight.const_value.shape.numpy())
        strides = self.node.attributes.get_ints("strides", [1] * len(kernel))
        return math.prod(kernel) * out / self.node.attributes.get_int("group", 1) / math.prod(strides)

    def reader(self) -> Input | None:
        """An input of the main graph that is its result; None where there is none."""
        for node, position in self.result.uses():
            if node.graph is self.node.graph:
                return Input(str(node.name), position)
        return None


def convolutions(graph: ir.Graph) -> list[ConvolutionLayer]:
    """The convolutions of a graph, without its subgraphs', in order."""
    return [
        ConvolutionLayer(node, _last(node))
        for node in graph
        if is_operator(node, "Conv") and all(_is_constant(value) for value in node.inputs[1:] if value is not None)
    ]


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _last(conv: ir.Node) -> ir.Node:
    (y,) = conv.outputs
    readers = [node for node, _ in y.uses()]
    if len(readers) != 1 or y.is_graph_output() or readers[0].graph is not conv.graph:
        return conv
    (reader,) = readers
    return reader if is_operator(reader, "Relu") or (is_operator(reader, "Clip") and _holds_zero(reader)) else conv


def _holds_zero(clip: ir.Node) -> bool:
    """Whether both of its ends are known, and zero is none beyond: codes between such ends clip by themselves."""
    low, high = (clip.inputs[i] if len(clip.inputs) > i else None for i in (1, 2))
    least = -math.inf if low is None else number_of(low)
    most = math.inf if high is None else number_of(high)
    return least is not None and most is not None and least <= 0 <= most
