"""Operands of attention with another number of axes as [R, H, l, d], and products as they were.

Of two axes the one image and head is added, of three the head; of more than four, all between the first and the last
two are one. What is found for an image is then found for an entry of the first axis, whatever there is behind it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

RANK = 4


def four_axes(op: OpBuilder, x: ir.Value, rank: int) -> ir.Value:
    """x [..., l, d] of `rank` axes, at least 2: [R, H, l, d]."""
    if rank == RANK:
        return x
    if rank < RANK:
        found = op.Unsqueeze(x, _added(rank))
    else:
        # Of nothing, -1 would be of any size.
        middle = op.ReduceProd(op.Shape(x, start=1, end=-2), keepdims=1)
        found = op.Reshape(x, op.Concat(op.Shape(x, end=1), middle, op.Shape(x, start=-2), axis=0), allowzero=1)
    found.dtype, found.shape = x.dtype, ir.Shape([None] * RANK)
    return found


def as_before(op: OpBuilder, y: ir.Value, x: ir.Value, rank: int) -> ir.Value:
    """The product y [R, H, l, d'] with the axes of its left operand x, [..., l, d'] of `rank`."""
    if rank == RANK:
        return y
    if rank < RANK:
        return op.Squeeze(y, _added(rank))
    return op.Reshape(y, op.Concat(op.Shape(x, end=-1), op.Shape(y, start=-1), axis=0), allowzero=1)


def _added(rank: int) -> list[int]:
    """The axes that are added to 2 or 3."""
    return [0, 1] if rank == 2 else [1]
