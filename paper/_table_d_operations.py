"""Multiply-adds of a model's products and convolutions, and bit operations of what became integer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._attention_patterns import attention_patterns

# A product in floats counts as one of so many bits each, as `nextscale theta` has it.
FLOAT_BITS = 16


@dataclass(frozen=True)
class Operations:
    """Of one row.

    Attributes:
        integer: share of the multiply-adds that are integer.
        bits: bit operations: multiply-adds times the bits of both operands.
    """

    integer: float
    bits: float


def multiply_adds(graph: ir.Graph) -> dict[str, int]:
    """By name of the node, or of an attention's second MatMul, what a run of a normalized graph takes.

    Of products, those of an attention added up, einsums and convolutions; nodes of unknown shapes are left out.
    """
    owner = {pattern.scores: str(pattern.mix.name) for pattern in attention_patterns(graph)}
    found: dict[str, int] = {}
    for node in graph:
        count = _of_node(node)
        if count is not None:
            name = owner.get(node, str(node.name))
            found[name] = found.get(name, 0) + count
    return found


def operations(counts: Mapping[str, int], bits: Mapping[str, tuple[int, int]]) -> Operations:
    """Of a model some of whose products are integer.

    Args:
        counts: of all, by name (`multiply_adds`).
        bits: of both operands of those that are integer, by name.
    """
    total = sum(counts.values())
    integer = sum(count for name, count in counts.items() if name in bits)
    weighted = sum(count * math.prod(bits.get(name, (FLOAT_BITS, FLOAT_BITS))) for name, count in counts.items())
    return Operations(integer / total if total else 0.0, float(weighted))


def _of_node(node: ir.Node) -> int | None:
    if node.domain != "":
        return None
    shapes = [value.shape for value in (*node.inputs, *node.outputs) if value is not None]
    if node.op_type == "MatMul":
        left, _, output = shapes
        return _product(output, left[-1:] if left is not None else None)
    if node.op_type == "Conv":
        return _product(shapes[-1], shapes[1][1:] if shapes[1] is not None else None)
    if node.op_type == "ConvTranspose":
        return _product(shapes[0], shapes[1][1:] if shapes[1] is not None else None)
    if node.op_type == "Einsum":
        return _of_einsum(node.attributes.get_string("equation", ""), shapes[:-1])
    return None


def _of_einsum(equation: str, shapes: Sequence[ir.Shape | None]) -> int | None:
    """Of every combination of indices."""
    sizes: dict[str, int | ir.SymbolicDim] = {}
    for letters, shape in zip(equation.replace(" ", "").partition("->")[0].split(","), shapes, strict=True):
        if shape is None or len(letters) != len(shape):
            return None
        sizes |= dict(zip(letters, shape, strict=True))
    return _product(sizes.values())


def _product(*sides: Iterable[int | ir.SymbolicDim] | None) -> int | None:
    """None where a side, or how many there are, is not known."""
    found = 1
    for of_one in sides:
        for side in of_one if of_one is not None else (None,):
            if not isinstance(side, int):
                return None
            found *= side
    return found
