"""Nodes of nextscale-ops (kernels/README.md) in a graph that exists: what the fuse passes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import is_operator
from nextscale.runtime._manifest import OPERATORS

OPERATORS_VERSION = 1
# The outputs that make codes, by their ranges; "" is left out.
CODE_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "static": ("codes",),
    "pair": ("codes", "difference"),
    "image": ("codes", "", "scale", "zero_point"),
    "token": ("codes", "", "scale", "zero_point"),
}
CACHES = ("present_key", "present_value")
_FLOATS = frozenset({"y", "scale", *CACHES})

Attributes = dict[str, str | int | float | Sequence[int] | Sequence[float]]


def insert_operator(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[str],
    name: str,
    attributes: Attributes,
    before: ir.Node,
) -> dict[str, ir.Value]:
    """Insert a node before another, and return its outputs by their names in the operator.

    Args:
        inputs: in the operator's order; None leaves one out.
        outputs: names in the operator's order; "" leaves one out.
        name: of the node; its values are called after it.
    """
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    values = [ir.Value(name=f"{name}.{output}" if output else "") for output in outputs]
    for value, output in zip(values, outputs, strict=True):
        if output:
            value.dtype = ir.DataType.FLOAT if output in _FLOATS else ir.DataType.UINT8
    node = ir.Node(OPERATORS, operator, given, ir.convenience.convert_attributes(attributes), outputs=values, name=name)
    graph.insert_before(before, node)
    return {output: value for output, value in zip(outputs, values, strict=True) if output}


def attribute_values(node: ir.Node) -> Attributes:
    """A node's attributes, to give them to another."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Let all that reads `old` read `new`, also as an output of the graph; the name goes over with that alone."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        name = old.name
        old.name = f"{name}.replaced"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def take_over_codes(made: Mapping[str, ir.Value], quantize: ir.Node) -> None:
    """The same for what a Quantize gives, which another operator now makes."""
    for output, old in zip(CODE_OUTPUTS[quantize.attributes["ranges"].as_string()], quantize.outputs, strict=True):
        if output:
            take_over(made[output], old)


def fused_nodes(graph: ir.Graph, *operators: str) -> list[ir.Node]:
    """The graph's nodes of these operators, in order."""
    return [node for node in graph if node.domain == OPERATORS and node.op_type in operators]


def has_fused(model: ir.Model) -> bool:
    """Whether a model has nodes of nextscale-ops, in subgraphs too."""
    return any(node.domain == OPERATORS for node in model.graph.all_nodes())


def only_use(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The node that alone reads a value, and as which input; None if another does or the graph gives it back."""
    uses = tuple(value.uses())
    return uses[0] if len(uses) == 1 and not value.is_graph_output() else None


def only_quantize(value: ir.Value) -> ir.Node | None:
    """The Quantize that alone reads a value."""
    use = only_use(value)
    return use[0] if use is not None and is_operator(use[0], "Quantize", OPERATORS) else None


def producer_of(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes the value, if it is this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and is_operator(node, op_type, domain) else None
