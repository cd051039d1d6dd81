"""The residual blocks of a graph, x + f(x): what reconstruction learns together.

A sum whose one operand depends on the other, of the same shape, ends a block; the block is everything that this
dependence passes through, with at least one linear layer, and with no other block inside. What it reads besides x,
such as a mask or what an encoder gave, comes from outside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import is_operator


@dataclass(frozen=True)
class ResidualBlock:
    """x + f(x).

    Attributes:
        stream: x.
        nodes: of f in the graph's order, then the sum.
        others: what f reads besides x that is neither a constant nor computed in it.
        layers: names of the linear layers in f.
    """

    stream: ir.Value
    nodes: tuple[ir.Node, ...]
    others: tuple[ir.Value, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The sum's."""
        return str(self.nodes[-1].name)

    @property
    def result(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """x and the others."""
        return (self.stream, *self.others)


def residual_blocks(graph: ir.Graph, layers: Collection[str]) -> list[ResidualBlock]:
    """The blocks of a graph in its order, each with some of these linear layers."""
    places = {node: place for place, node in enumerate(graph)}
    found, sums, taken = list[ResidualBlock](), set[ir.Node](), set[str]()
    for node in graph:
        for stream, branch in _splits(node):
            between = _between(stream, branch, places)
            of_block = tuple(str(one.name) for one in between if one.name in layers)
            if of_block and sums.isdisjoint(between) and taken.isdisjoint(of_block):
                nodes = (*between, node)
                found.append(ResidualBlock(stream, nodes, _read_outside(stream, nodes), of_block))
                sums.add(node)
                taken.update(of_block)
    return found


def _splits(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The operands of a sum of two activations, as far as is known of one shape, either first."""
    if not is_operator(node, "Add") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return
    left, right = node.inputs
    if left is None or right is None or left is right or left.shape is None or right.shape is None:
        return
    if len(left.shape) < 2 or len(left.shape) != len(right.shape):
        return
    sizes = zip(left.shape, right.shape, strict=True)
    if any(isinstance(one, int) and isinstance(other, int) and one != other for one, other in sizes):
        return
    if left.const_value is None and right.const_value is None:
        yield from ((left, right), (right, left))


def _between(stream: ir.Value, branch: ir.Value, places: dict[ir.Node, int]) -> list[ir.Node]:
    """The nodes through which the branch depends on the stream, in the graph's order; none if it does not."""
    end = branch.producer()
    maker = stream.producer()
    first = -1 if maker is None else places.get(maker, -1)
    if end is None or places[end] <= first:
        return []
    # What depends on the stream comes behind its maker.
    behind, todo = set[ir.Node](), [end]
    while todo:
        node = todo.pop()
        if node in behind or places[node] <= first:
            continue
        behind.add(node)
        todo += [maker for maker in (value.producer() for value in _reads(node)) if maker is not None]
    depends, between = {stream}, list[ir.Node]()
    for node in sorted(behind, key=lambda one: places[one]):
        if not depends.isdisjoint(_reads(node)):
            depends |= set(node.outputs)
            between.append(node)
    return between if branch in depends else []


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _read_outside(stream: ir.Value, nodes: tuple[ir.Node, ...]) -> tuple[ir.Value, ...]:
    made = {value for node in nodes for value in node.outputs} | {stream}
    read = dict.fromkeys(value for node in nodes for value in _reads(node))
    return tuple(value for value in read if value not in made and value.const_value is None)
