"""Find attention in any ONNX graph by its operators, whatever its nodes are called.

    query, key -> MatMul -> (Mul or Div by a constant, Add of a mask)* -> Softmax over the last axis -> MatMul <- value

Identity may stand anywhere between. Nothing but the second MatMul may read the softmax, so that a pass may change what
the product sees. Graphs of opset 13 or later, where Softmax works on the last axis unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import input_of, is_operator


@dataclass(frozen=True)
class AttentionPattern:
    """softmax(f(query key)) value.

    Attributes:
        scores: the MatMul of query [..., T', d] and key [..., d, T].
        softmax: the Softmax over the T keys.
        mix: the MatMul of the weights [..., T', T] and value [..., T, d].
        graph: where `mix` is, the main graph or a subgraph.
    """

    scores: ir.Node
    softmax: ir.Node
    mix: ir.Node
    graph: ir.Graph

    @property
    def name(self) -> str:
        """The mix node's."""
        return str(self.mix.name)

    @property
    def query(self) -> ir.Value:
        return input_of(self.scores, 0)

    @property
    def key(self) -> ir.Value:
        return input_of(self.scores, 1)

    @property
    def logits(self) -> ir.Value:
        """The softmax's input, [..., T', T]."""
        return input_of(self.softmax, 0)

    @property
    def weights(self) -> ir.Value:
        """The softmax's output, [..., T', T]; each row sums to 1."""
        return self.softmax.outputs[0]

    @property
    def value(self) -> ir.Value:
        return input_of(self.mix, 1)

    @property
    def is_masked(self) -> bool:
        """Whether a mask is added to the scores, so that weights may be zero that stand for no token."""
        return _is_masked(self.logits)


@dataclass(frozen=True)
class Refusal:
    """A Softmax that is not taken for attention, and why."""

    node: ir.Node
    reason: str

    def __str__(self) -> str:
        return f"{self.node.name}: {self.reason}"


def attention_patterns(graph: ir.Graph) -> list[AttentionPattern]:
    """The attention patterns of a graph and of its subgraphs, in order."""
    return [found for found in _matches(graph) if isinstance(found, AttentionPattern)]


def refusals(graph: ir.Graph) -> list[Refusal]:
    """The other Softmax nodes of a graph and of its subgraphs, in order."""
    return [found for found in _matches(graph) if isinstance(found, Refusal)]


def _matches(graph: ir.Graph) -> Iterator[AttentionPattern | Refusal]:
    for node in graph:
        if is_operator(node, "Softmax"):
            yield _match(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _matches(attribute.as_graph())


def _match(softmax: ir.Node) -> AttentionPattern | Refusal:
    reason = _refused_axis(softmax)
    if reason is not None:
        return Refusal(softmax, reason)
    mix = _consumer(softmax.outputs[0])
    if isinstance(mix, str):
        return Refusal(softmax, mix)
    scores = _product(input_of(softmax, 0))
    if scores is None:
        return Refusal(softmax, "its input is no MatMul with only constant factors and masks behind it")
    for product, i, operand in ((scores, 0, "query"), (scores, 1, "key"), (mix, 1, "value")):
        if _is_constant(input_of(product, i)):
            return Refusal(softmax, f"the {operand} side of {product.name} is a constant: a linear layer, no attention")
    assert isinstance(mix.graph, ir.Graph)
    return AttentionPattern(scores, softmax, mix, mix.graph)


def _refused_axis(softmax: ir.Node) -> str | None:
    axis = softmax.attributes.get_int("axis", -1)
    if axis == -1:
        return None
    shape = input_of(softmax, 0).shape or softmax.outputs[0].shape
    if shape is None:
        return f"axis {axis} of a tensor of unknown rank may not be the last"
    return None if axis == len(shape) - 1 else f"axis {axis} is not the last of {len(shape)}"


def _consumer(weights: ir.Value) -> ir.Node | str:
    """The MatMul that alone reads the softmax as its left operand, or why there is none."""
    while True:
        uses = tuple(weights.uses())
        if weights.is_graph_output():
            return "its output leaves the graph"
        if len(uses) != 1:
            return f"its output has {len(uses)} consumers, not the product with the values alone"
        node, i = uses[0]
        if is_operator(node, "Identity"):
            weights = node.outputs[0]
        elif is_operator(node, "MatMul"):
            return node if i == 0 else f"{node.name} has it as the right operand"
        else:
            return f"its consumer {node.name} is {node.op_type}, not MatMul"


def _product(value: ir.Value) -> ir.Node | None:
    """The MatMul that makes `value`, up to constant factors and added masks; of two that are added, neither."""
    node = value.producer()
    if node is None or is_operator(node, "MatMul"):
        return node
    if is_operator(node, "Identity") or (is_operator(node, "Div") and _is_constant(input_of(node, 1))):
        return _product(input_of(node, 0))
    if is_operator(node, "Mul") and _is_constant(input_of(node, 0)) != _is_constant(input_of(node, 1)):
        return _product(input_of(node, 0 if _is_constant(input_of(node, 1)) else 1))
    if is_operator(node, "Add"):
        found = [product for product in map(_product, (input_of(node, 0), input_of(node, 1))) if product is not None]
        return found[0] if len(found) == 1 else None
    return None


def _is_masked(logits: ir.Value) -> bool:
    """Whether there is an Add between the scores and the softmax."""
    node = logits.producer()
    if node is None or node.op_type not in ("Identity", "Div", "Mul", "Add"):
        return False
    return node.op_type == "Add" or any(_is_masked(value) for value in node.inputs if value is not None)


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None
