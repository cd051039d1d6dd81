"""Observers: more graph outputs, which tell what chosen operators read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

Part = Literal["uncond", "difference"]
# Of an input whose rows are those with the class and then those without: the latter, and what the class adds.
PARTS: tuple[Part, Part] = ("uncond", "difference")
Gives = Literal["range", "channels", "values", "finite"]
TOKENS = (0, 1)  # of [2B, l, C]
PIXELS = (0, 2, 3)  # of [B, C, H, W]


@dataclass(frozen=True)
class Input:
    """What a node reads, or a part of it: the key of everything that calibration knows about activations.

    Attributes:
        node: the node's name; for a linear layer that is the layer's.
        position: which of its inputs.
        part: of an input [2B, ...]; None is all of it.
    """

    node: str
    position: int = 0
    part: Part | None = None

    def parts(self) -> tuple[Input, Input]:
        """Both parts of the input."""
        uncond, difference = (Input(self.node, self.position, part) for part in PARTS)
        return uncond, difference


@dataclass(frozen=True)
class Observer:
    """One more output of a graph.

    Attributes:
        input: what is observed.
        gives: "range", the smallest and largest value that is a number, float32 [2]; "channels", the same for each
            channel, [2, C]; "values", the input itself; or "finite", float32 [1], 0 or, where a value is not finite,
            NaN.
        axes: that "channels" reduces.
    """

    input: Input
    gives: Gives
    axes: tuple[int, ...] = TOKENS

    @property
    def output(self) -> str:
        """The output's name."""
        part = "" if self.input.part is None else f".{self.input.part}"
        return f"observed.{self.gives}.{self.input.node}:{self.input.position}{part}"


def observe_inputs(model: ir.Model, observers: Iterable[Observer]) -> ir.Model:
    """A copy of `model` with one more output for each observer, in their order.

    Nodes that share an input share what is computed from it.

    Raises:
        ValueError: an observer's node is none of the main graph's.
    """
    model = model.clone()
    pieces = _Pieces(model.graph)
    for observer in dict.fromkeys(observers):
        output = pieces.append("Identity", [pieces.observed(observer)], observer.output)
        output.dtype = ir.DataType.FLOAT
        output.shape = pieces.shape_of(observer)
        model.graph.outputs.append(output)
    return model


class _Pieces:
    """What observers add to a graph, each piece once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes = {node.name: node for node in graph}
        self._halves: dict[ir.Value, dict[Part, ir.Value]] = {}
        self._zeros: dict[ir.Value, ir.Value] = {}
        self._extremes: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}

    def observed(self, observer: Observer) -> ir.Value:
        source = self._source(observer.input)
        if observer.gives == "values":
            return source
        if observer.gives == "finite":
            if source not in self._zeros:
                self._zeros[source] = self._zero(source)
            return self._zeros[source]
        axes = observer.axes if observer.gives == "channels" else ()
        if (source, axes) not in self._extremes:
            self._extremes[source, axes] = self._reduced(source, axes)
        return self._extremes[source, axes]

    def shape_of(self, observer: Observer) -> ir.Shape | None:
        """What is declared of an observer's output; of values no more than their rank, if it is known."""
        if observer.gives == "values":
            shape = self._source(observer.input).shape
            return None if shape is None else ir.Shape([None] * len(shape))
        shapes: dict[str, list[int | None]] = {"range": [2], "finite": [1], "channels": [2, None]}
        return ir.Shape(shapes[observer.gives])

    def append(self, op_type: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Value:
        """A node at the end of the graph; its output."""
        node = ir.node(op_type, list(inputs), attributes, name=f"observe/{output}")
        self._graph.append(node)
        node.outputs[0].name = output
        return node.outputs[0]

    def _source(self, key: Input) -> ir.Value:
        if key.node not in self._nodes:
            raise ValueError(f"no node of the main graph is named {key.node!r}")
        source = self._nodes[key.node].inputs[key.position]
        assert source is not None
        return source if key.part is None else self._parts(source)[key.part]

    def _parts(self, source: ir.Value) -> dict[Part, ir.Value]:
        if source not in self._halves:
            split = ir.node(
                "Split", [source], {"axis": 0, "num_outputs": 2}, num_outputs=2, name=f"observe/{source.name}/split"
            )
            self._graph.append(split)
            cond, uncond = split.outputs
            cond.name, uncond.name = f"{source.name}.observed_cond", f"{source.name}.observed_uncond"
            difference = self.append("Sub", [cond, uncond], f"{source.name}.observed_difference")
            self._halves[source] = {"uncond": uncond, "difference": difference}
        return self._halves[source]

    def _reduced(self, source: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        """Min and max of `source` over `axes`, none being all: [2] or [2, C]."""
        name = f"{source.name}.{'_'.join(map(str, axes)) or 'all'}"
        ends = []
        for op_type in ("ReduceMin", "ReduceMax"):
            inputs = [source, self._constant(axes)] if axes else [source]
            end = self.append(op_type, inputs, f"{name}.{op_type}", keepdims=0)
            ends.append(self.append("Unsqueeze", [end, self._constant((0,))], f"{name}.{op_type}.row"))
        return self.append("Concat", ends, f"{name}.extremes", axis=0)

    def _zero(self, source: ir.Value) -> ir.Value:
        """The sum of what each value is more than itself: [1]."""
        more = self.append("Sub", [source, source], f"{source.name}.zeros")
        total = self.append("ReduceSum", [more], f"{source.name}.zero", keepdims=0)
        return self.append("Unsqueeze", [total, self._constant((0,))], f"{source.name}.finite")

    def _constant(self, numbers: tuple[int, ...]) -> ir.Value:
        name = f"observe.{'_'.join(map(str, numbers))}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(list(numbers), dtype=ir.DataType.INT64, name=name)
            shape = ir.Shape([len(numbers)])
            value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]
