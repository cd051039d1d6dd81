"""What the graph builders share: the opset, initializers from torch parameters, and small idioms.

Graphs are built with onnxscript's GraphBuilder. Initializers carry the state-dict names of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.graph_passes._graph_edit import MICROSOFT
from nextscale.models._weight import Weight

OPSET = 21
IR_VERSION = 10
PRODUCER = "nextscale"

Shape = Sequence[int | str]


def new_builder(name: str) -> GraphBuilder:
    """An empty graph and the builder that fills it."""
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, MICROSOFT: 1})
    return GraphBuilder(graph)


def finish(builder: GraphBuilder) -> ir.Model:
    """The model around a builder's graph."""
    return ir.Model(builder.graph, ir_version=IR_VERSION, producer_name=PRODUCER)


def add_output(builder: GraphBuilder, value: ir.Value, name: str, dtype: ir.DataType, shape: Shape) -> None:
    """Declare `value` as the graph's output `name`."""
    value.dtype, value.shape = dtype, ir.Shape(shape)
    builder.add_output(value, name)


class Constants:
    """Initializers of one graph, each made once and shared by all who ask for the same name."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder.root
        self._made: dict[str, ir.Value] = {}

    def __call__(self, name: str, array: Weight | np.ndarray) -> ir.Value:
        """The initializer `name`. The array is referenced, not copied; one that a function makes is never kept."""
        if name not in self._made:
            self._made[name] = self._builder.initializer(_tensor(name, array), name, qualify=False)
        return self._made[name]


def _tensor(name: str, array: Weight | np.ndarray) -> ir.TensorProtocol:
    if callable(array):
        make = array
        dtype, shape = ir.DataType.FLOAT, ir.Shape(make().shape)
        return ir.LazyTensor(lambda: ir.tensor(make().numpy(), name=name), dtype=dtype, shape=shape, name=name)
    return ir.tensor(array.detach().numpy() if isinstance(array, torch.Tensor) else array, name=name)


def linear(
    op: OpBuilder, constants: Constants, name: str, x: ir.Value, weight: Weight, bias: torch.Tensor | None
) -> ir.Value:
    """x @ weight.T + bias: [..., in] -> [..., out]; weight is torch's [out, in]. The MatMul is named `name`."""
    transposed: Weight = (lambda: weight().T) if callable(weight) else weight.T
    y = op.MatMul(x, constants(f"{name}.weight", transposed), _name=name)
    return y if bias is None else op.Add(y, constants(f"{name}.bias", bias))


def dimensions(value: ir.Value) -> list[int | str]:
    """A declared shape as sizes and symbols."""
    assert value.shape is not None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]


def scalar_at(op: OpBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """table[index] of a vector, as a vector of one: [S], [] -> [1]."""
    return op.Gather(table, op.Unsqueeze(index, [0]))


def rows(op: OpBuilder, x: ir.Value, begin: ir.Value | list[int], end: ir.Value | list[int], axis: int) -> ir.Value:
    """x[begin:end] along `axis`; begin and end are int64 [1]."""
    return op.Slice(x, begin, end, [axis])


def branch(
    op: OpBuilder,
    condition: ir.Value,
    then: Callable[[OpBuilder], Sequence[ir.Value]],
    otherwise: Callable[[OpBuilder], Sequence[ir.Value]],
    names: Sequence[str],
) -> Sequence[ir.Value]:
    """If(condition): the values of `then` or of `otherwise`, named `names`.

    Both may use outer values; a branch that returns one of them must pass it through Identity.
    """

    def traced(function: Callable[[OpBuilder], Sequence[ir.Value]], side: str) -> ir.Graph:
        def body(op: OpBuilder) -> Sequence[ir.Value]:
            # A scope of its own keeps its names apart from the outer graph's: ONNX wants them unique across both.
            op.builder.push_module(f"{names[0]}.{side}")
            values = function(op)
            op.builder.pop_module()
            return values

        return op.builder.subgraph(body, [], [ir.Value(name=f"{name}.{side}") for name in names], name=side)

    result = op.If(
        condition,
        then_branch=traced(then, "then"),
        else_branch=traced(otherwise, "else"),
        _outputs=list(names),
    )
    return [result] if len(names) == 1 else result
