"""Sizes that a graph learns of its input when it runs, so that one graph serves pictures of several sizes.

A side of the input is `granule` times a whole number; each layer multiplies or divides it by two, so that all sizes
and offsets of a graph are monomials of these numbers, plus a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import onnx_ir as ir
from onnxscript import OpBuilder


@dataclass(frozen=True)
class Symbolic:
    """coefficient * the product of symbols + offset."""

    symbols: tuple[str, ...]
    coefficient: int
    offset: int = 0

    def __mul__(self, other: Size) -> Size:
        """By a number, or without offsets by another."""
        if isinstance(other, int):
            return 0 if other == 0 else replace(self, coefficient=self.coefficient * other, offset=self.offset * other)
        assert not self.offset
        assert not other.offset
        return Symbolic(tuple(sorted(self.symbols + other.symbols)), self.coefficient * other.coefficient)

    def __add__(self, other: int) -> Symbolic:
        return replace(self, offset=self.offset + other)

    def __sub__(self, other: int) -> Symbolic:
        return self + -other

    def __floordiv__(self, other: int) -> Symbolic:
        """Where nothing is left over, whatever the symbols are.

        Raises:
            ValueError: something may be.
        """
        if self.coefficient % other or self.offset % other:
            raise ValueError(f"{self} may be no multiple of {other}")
        return replace(self, coefficient=self.coefficient // other, offset=self.offset // other)

    __rmul__ = __mul__
    __radd__ = __add__


Size = int | Symbolic


def sure_divisor(size: Size) -> int:
    """The largest number that divides a size, whatever its symbols are."""
    if isinstance(size, int):
        return size
    assert not size.offset
    return size.coefficient


class SizeValues:
    """Sizes as the values of a graph.

    Args:
        op: builds the graph.
        source: its input.
        axes: which axis of the input each symbol is; its sides are `granule` times the symbols.
    """

    def __init__(self, op: OpBuilder, source: ir.Value, axes: Mapping[str, int], granule: int) -> None:
        self._op, self._source, self._axes, self._granule = op, source, axes, granule
        self._values: dict[Symbolic, ir.Value] = {}
        self._vectors: dict[tuple[Size, ...], ir.Value] = {}

    def vector(self, sizes: Sequence[Size]) -> list[int] | ir.Value:
        """For an operator that takes a vector of sizes: the numbers, or int64 [n]."""
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) == len(sizes):
            return numbers
        key = tuple(sizes)
        if key not in self._vectors:
            parts = [[size] if isinstance(size, int) else self._value(size) for size in sizes]
            self._vectors[key] = self._op.Concat(*parts, axis=0)
        return self._vectors[key]

    def _value(self, size: Symbolic) -> ir.Value:
        """int64 [1]."""
        if size not in self._values:
            self._values[size] = self._made(size)
        return self._values[size]

    def _made(self, size: Symbolic) -> ir.Value:
        if size.offset:
            return self._op.Add(self._value(replace(size, offset=0)), [size.offset])
        if size.coefficient != 1:
            return self._op.Mul(self._value(replace(size, coefficient=1)), [size.coefficient])
        if len(size.symbols) > 1:
            return reduce(self._op.Mul, (self._value(Symbolic((symbol,), 1)) for symbol in size.symbols))
        axis = self._axes[size.symbols[0]]
        side = self._op.Shape(self._source, start=axis, end=axis + 1)
        return side if self._granule == 1 else self._op.Div(side, [self._granule])
