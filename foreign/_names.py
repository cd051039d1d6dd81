"""Give every node and value of a model a name of its own."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class Names:
    """The names that a model's values and nodes have, in the main graph and all subgraphs."""

    def __init__(self, model: ir.Model) -> None:
        self._values = {value.name for graph in model.graphs() for value in values_of(graph) if value.name}
        self._nodes = {node.name for node in model.graph.all_nodes() if node.name}

    def value(self, wanted: str) -> str:
        """A name for a new value: what is wanted, or the first `wanted.1`, `wanted.2`, ... that is free."""
        return _claim(wanted, self._values)

    def node(self, wanted: str) -> str:
        """The same for a node."""
        return _claim(wanted, self._nodes)


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """A graph's inputs, initializers and what its nodes put out, without its subgraphs'; some come twice."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def name_all(model: ir.Model) -> int:
    """Name what has no name, and rename all but the first of those that share one; how many that were.

    A graph's inputs and outputs come first, the main graph's before all others, so that these keep theirs. Outputs
    at the end of a node that are left out go, since a name would ask for them.
    """
    for node in model.graph.all_nodes():
        while node.outputs and not node.outputs[-1].name and not node.outputs[-1].uses():
            node.resize_outputs(len(node.outputs) - 1)
    return _name_values(model) + _name_nodes(model)


def _name_values(model: ir.Model) -> int:
    graphs = list(model.graphs())
    first = [value for graph in graphs for value in (*graph.inputs, *graph.outputs)]
    values = list(dict.fromkeys([*first, *(value for graph in graphs for value in values_of(graph))]))
    kept: set[str] = set()
    unnamed = [value for value in values if not value.name or _is_taken(value.name, kept)]
    for value in unnamed:
        producer = value.producer()
        value.name = _claim(value.name or (f"{producer.op_type}.output" if producer else "value"), kept)
    return len(unnamed)


def _name_nodes(model: ir.Model) -> int:
    kept: set[str] = set()
    nodes = list(model.graph.all_nodes())
    unnamed = [node for node in nodes if not node.name or _is_taken(node.name, kept)]
    for node in unnamed:
        node.name = _claim(node.name or node.op_type, kept)
    return len(unnamed)


def _is_taken(name: str, kept: set[str]) -> bool:
    """Whether it is in `kept`, where it is from now on."""
    before = len(kept)
    kept.add(name)
    return len(kept) == before


def _claim(wanted: str, taken: set[str]) -> str:
    name, i = wanted, 0
    while name in taken:
        i += 1
        name = f"{wanted}.{i}"
    taken.add(name)
    return name
