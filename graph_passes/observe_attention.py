"""Observers: graph outputs that give each attention's weights, values and product, in a float or an integer graph.

In a float graph an attention is found by its operators (`attention_patterns`). An integer one is a piece of graph, all
nodes of which are named "{mix}/integer/..." (`quantize_attention`; `mix` names the second MatMul of the float graph):

    1. The weights: the output of a Softmax which nodes of the piece read, or whose input they read. Quantizing leaves
       the Softmax where it was.
    2. The value: what else the piece reads of the graph's floats. The stage, which chooses shift-and-sum's places, is
       an integer; all other operands are initializers of the piece.
    3. The product: the one value which the piece makes under a name that is not the piece's. It took the name of the
       MatMul's output. The counter of a debug bundle has a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes._graph_edit import input_of, is_operator
from nextscale.graph_passes.quantize_attention import overflow_name

PIECE = "/integer/"


@dataclass(frozen=True)
class AttentionProduct:
    """weights value, as floats or as codes.

    Attributes:
        name: of the product's node in the float graph.
        weights: the softmax's output, [..., T', T].
        value: [..., T, d], before it is quantized.
        product: [..., T', d].
        integer: whether the product is integer.
    """

    name: str
    weights: ir.Value
    value: ir.Value
    product: ir.Value
    integer: bool

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """An initializer of the integer piece, such as "value_scale", "theta" or "places"; None if it has none."""
        graph = self.product.graph
        assert graph is not None
        found = graph.initializers.get(f"{self.name}{PIECE}{name}")
        return None if found is None or found.const_value is None else found.const_value.numpy()


def output_names(name: str) -> tuple[str, str, str]:
    """The outputs that carry the weights, the value and the product of the attention `name`."""
    return f"weights.{name}", f"value.{name}", f"product.{name}"


def observe_attention(model: ir.Model, *, floats: bool = True) -> ir.Model:
    """A copy of `model` that also gives each attention's weights, value and product. Applied again it changes nothing.

    Args:
        model: a stage graph.
        floats: also those of float attention, which must be in the main graph.
    Raises:
        ValueError: a float attention is in a subgraph, whose values cannot be outputs of the model, or an integer one
            is not of the form above.
    """
    model = model.clone()
    graph = model.graph
    present = {output.name for output in graph.outputs}
    for found in attention_products(graph, floats=floats):
        names = output_names(found.name)
        if names[0] not in present:
            for source, name in zip((found.weights, found.value, found.product), names, strict=True):
                graph.outputs.append(_append_observer(graph, source, name))
    return model


def attention_products(graph: ir.Graph, *, floats: bool = True) -> list[AttentionProduct]:
    """The attention of the main graph, in order.

    Args:
        graph: of a stage.
        floats: also those of float operators.
    Raises:
        ValueError: as for `observe_attention`.
    """
    of_floats = {}
    for pattern in attention_patterns(graph) if floats else ():
        if pattern.graph is not graph:
            raise ValueError(f"{pattern.name} is in a subgraph; attention is observed in the main graph only")
        of_floats[pattern.softmax] = AttentionProduct(
            pattern.name, pattern.weights, pattern.value, pattern.mix.outputs[0], integer=False
        )
    pieces = _pieces(graph)
    return [
        found
        for node in graph
        if is_operator(node, "Softmax")
        for found in ([of_floats[node]] if node in of_floats else _integer(node, pieces))
    ]


def _pieces(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """The nodes of integer pieces, by the name of the product that they replaced."""
    pieces: dict[str, list[ir.Node]] = {}
    for node in graph:
        name, found, _ = str(node.name).rpartition(PIECE)
        if found:
            pieces.setdefault(name, []).append(node)
    return pieces


def _integer(softmax: ir.Node, pieces: dict[str, list[ir.Node]]) -> Iterator[AttentionProduct]:
    """The attention whose weights are the Softmax's, if an integer piece reads them or their logits."""
    weights = softmax.outputs[0]
    read = [*weights.uses(), *input_of(softmax, 0).uses()]
    readers = dict.fromkeys(str(node.name).rpartition(PIECE)[0] for node, _ in read)
    for name in readers:
        if name in pieces:
            nodes = pieces[name]
            value = _only(_operands(nodes, softmax), f"{name}: values, which its integer product reads")
            made = [
                output
                for node in nodes
                for output in node.outputs
                if not str(output.name).startswith(f"{name}{PIECE}") and output.name != overflow_name(name)
            ]
            yield AttentionProduct(
                name, weights, value, _only(made, f"{name}: results of its integer product"), integer=True
            )


def _operands(nodes: list[ir.Node], softmax: ir.Node) -> list[ir.Value]:
    """The floats that the piece reads of the graph around it, other than the weights and their logits."""
    inside = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    return [
        value
        for value in read
        if value not in inside
        and value is not softmax.inputs[0]
        and value is not softmax.outputs[0]
        and not value.is_initializer()
        and not (value.is_graph_input() and value.dtype != ir.DataType.FLOAT)
    ]


def _only(values: list[ir.Value], what: str) -> ir.Value:
    if len(values) != 1:
        raise ValueError(f"{what}: expected 1, found {len(values)} ({', '.join(str(v.name) for v in values)})")
    return values[0]


def _append_observer(graph: ir.Graph, source: ir.Value, name: str) -> ir.Value:
    node = ir.node("Identity", [source], name=f"observe/{name}")
    graph.append(node)
    output = node.outputs[0]
    output.name, output.dtype, output.shape = name, ir.DataType.FLOAT, source.shape
    return output
