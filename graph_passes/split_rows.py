"""Keep the rows with the class and those without in two tensors, wherever joining them would only be undone.

    Split(Concat(a, b)) -> a, b        f(Concat(a, b)) that is split -> f(a), f(b)   for f that works row by row

Layers for guided rows (`quantize_linear_pairs`) begin with a Split and end with a Concat, each a copy of the whole
tensor. Between two of them the two halves stay apart; attention, whose cache joins the rows, gets them joined.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._graph_edit import input_of, is_operator

# Each row of the outputs comes from the same row of the operands; the first of these broadcast others.
ROW_WISE = frozenset({"Add", "Gelu", "LayerNormalization", "Mul", "Sub"})
Halves = tuple[ir.Value, ir.Value]


def split_rows(model: ir.Model, rows: str) -> ir.Model:
    """A copy of `model` with no Split of rows that can be had apart; the same numbers, bit for bit.

    Args:
        model: a graph whose rows are two halves; what two tensors joined along axis 0 make are these.
        rows: the symbolic size of an axis 0 that holds both.
    """
    model = model.clone()
    apart = _Apart(model.graph, rows)
    for node in list(model.graph):
        if _splits_rows(node) and (halves := apart.of(input_of(node, 0))) is not None:
            for output, half in zip(node.outputs, halves, strict=True):
                output.replace_all_uses_with(half)
    RemoveUnusedNodesPass()(model)
    return model


class _Apart:
    """Values as two halves, each found or made once."""

    def __init__(self, graph: ir.Graph, rows: str) -> None:
        self._graph, self._rows = graph, rows
        self._known: dict[ir.Value, Halves | None] = {}

    def of(self, value: ir.Value) -> Halves | None:
        """Both halves; None where only a Split of the value itself would give them."""
        if value not in self._known:
            self._known[value] = self._found(value)
        return self._known[value]

    def _found(self, value: ir.Value) -> Halves | None:
        node = value.producer()
        if node is None:
            return None
        if _joins_rows(node):
            return input_of(node, 0), input_of(node, 1)
        if is_operator(node, "Split") and node.attributes.get_int("axis", 0) != 0:
            return self._of_each(node, value, {0: self.or_split(input_of(node, 0))})
        if node.op_type not in ROW_WISE or node.domain != "":
            return None
        operands = {
            i: self.or_split(input_of(node, i)) for i in range(len(node.inputs)) if not _is_row(input_of(node, i))
        }
        return self._of_each(node, value, operands)

    def or_split(self, value: ir.Value) -> Halves | None:
        """Both halves, with a Split if need be; None where the value is not known to have both."""
        halves = self.of(value)
        if halves is None and value.shape is not None and len(value.shape) and self._has_both(value):
            split = ir.node("Split", [value], {"axis": 0, "num_outputs": 2}, num_outputs=2, name=f"{value.name}/halves")
            for output, side in zip(split.outputs, ("cond", "uncond"), strict=True):
                output.name = f"{value.name}.{side}"
            self._insert(split, value.producer())
            halves = self._known[value] = (split.outputs[0], split.outputs[1])
        return halves

    def _has_both(self, value: ir.Value) -> bool:
        assert value.shape is not None
        first = value.shape[0]
        return isinstance(first, ir.SymbolicDim) and first.value == self._rows

    def _of_each(self, node: ir.Node, value: ir.Value, operands: Mapping[int, Halves | None]) -> Halves | None:
        """The node done for both halves of its operands; the other operands are the same for both."""
        known = {i: halves for i, halves in operands.items() if halves is not None}
        if not known or len(known) < len(operands):
            return None
        made = []
        for half, side in enumerate(("cond", "uncond")):
            inputs = [known[i][half] if i in known else operand for i, operand in enumerate(node.inputs)]
            copy = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{node.name}.{side}",
            )
            for output, old in zip(copy.outputs, node.outputs, strict=True):
                output.name, output.type = f"{old.name}.{side}", old.type
            self._insert(copy, node)
            made.append(copy)
        for i, output in enumerate(node.outputs):
            self._known[output] = (made[0].outputs[i], made[1].outputs[i])
        return self._known[value]

    def _insert(self, node: ir.Node, after: ir.Node | None) -> None:
        if after is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(after, node)


def _splits_rows(node: ir.Node) -> bool:
    return is_operator(node, "Split") and len(node.outputs) == 2 and node.attributes.get_int("axis", 0) == 0


def _joins_rows(node: ir.Node) -> bool:
    return is_operator(node, "Concat") and len(node.inputs) == 2 and node.attributes.get_int("axis", 0) == 0


def _is_row(value: ir.Value) -> bool:
    """Whether it is a constant that all rows share."""
    return value.const_value is not None and len(value.const_value.shape) < 2
