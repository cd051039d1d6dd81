"""Ranges that are found at run time, and codes in them: pieces of graph that layers and attention share.

Symbols: R rows of a batch, of which one image has one or several.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_edit import constant

# Of a range found at run time, where all is zero too: 2^15 over it, and 255 times it, are normal numbers.
LEAST_SCALE = 2.0**-100


def image_extreme(op: OpBuilder, x: ir.Value, rows: int, largest: bool) -> ir.Value:
    """The largest or smallest value of each image, of nothing -inf or inf, given to its rows: [R, ...] -> [R]."""
    assert x.shape is not None
    extreme_of = op.ReduceMax if largest else op.ReduceMin
    of_rows = extreme_of(x, list(range(1, len(x.shape))), keepdims=0)
    if rows == 1:
        return of_rows
    merged = extreme_of(op.Reshape(of_rows, [rows, -1]), [0], keepdims=0)
    return op.Concat(*[merged] * rows, axis=0)


def positive(op: OpBuilder, scale: ir.Value) -> ir.Value:
    """The scale, or LEAST_SCALE where it is less."""
    return op.Max(scale, LEAST_SCALE)


def by_row(op: OpBuilder, x: ir.Value, rank: int) -> ir.Value:
    """[R] -> [R, 1, ...], to broadcast to something of that rank."""
    return op.Reshape(x, [-1, *[1] * (rank - 1)])


def quantize_images(
    op: OpBuilder, x: ir.Value, scale: ir.Value, zero_point: ir.Value, qmin: int, qmax: int
) -> ir.Value:
    """Codes of x, of zero_point's type, from qmin to qmax.

    Args:
        x: float32 [R, ...].
        scale: float32 [] or [R].
        zero_point: u8 or s8, of the scale's shape or one for all.
    """
    if scale.shape is not None and len(scale.shape) == 0:
        return _capped(op, op.QuantizeLinear(x, scale, zero_point), qmin, qmax)
    zero_points = op.Expand(zero_point, op.Shape(scale)) if zero_point.const_value is not None else zero_point
    return _capped(op, op.QuantizeLinear(x, scale, zero_points, axis=0), qmin, qmax)


def quantize_rows(op: OpBuilder, x: ir.Value, scale: ir.Value, zero_point: ir.Value, qmin: int, qmax: int) -> ir.Value:
    """Codes of x, of zero_point's type, from qmin to qmax.

    Args:
        x: float32 [..., n].
        scale: float32 [..., 1].
        zero_point: u8 or s8 [].
    """
    # QuantizeLinear takes a scale for each row of a matrix without a pass of its own.
    flat = op.Reshape(x, op.Concat([-1], op.Shape(x, start=-1), axis=0))
    scales = op.Reshape(scale, [-1])
    codes = op.QuantizeLinear(flat, scales, op.Expand(zero_point, op.Shape(scales)), axis=0)
    return _capped(op, op.Reshape(codes, op.Shape(x), allowzero=1), qmin, qmax)


def quantize_tokens(op: OpBuilder, x: ir.Value, zero_point: int, bits: int, rank: int = 3) -> tuple[ir.Value, ir.Value]:
    """Codes of x [..., K] of that rank, with a range for each token: u8 of its shape, and their scale float32
    [..., 1]."""
    qmax = 2**bits - 1
    high = op.ReduceMax(x, [-1], keepdims=1)
    low = op.ReduceMin(x, [-1], keepdims=1)
    scale = positive(op, op.Max(op.Div(high, float(qmax - zero_point)), op.Div(op.Neg(low), float(zero_point))))
    # A stage may have no tokens of a kind: ONNX Runtime leaves the last axis of nothing as it is.
    scale = op.Reshape(scale, [*[0] * (rank - 1), 1])
    at = constant(op, "zero_point", np.array(zero_point, np.uint8))
    return quantize_rows(op, x, scale, at, 0, qmax), scale


def _capped(op: OpBuilder, codes: ir.Value, qmin: int, qmax: int) -> ir.Value:
    limits = np.iinfo(np.int8 if qmin < 0 else np.uint8)
    if (qmin, qmax) == (limits.min, limits.max):
        return codes
    low, high = (constant(op, f"code.{end}", np.array(end, limits.dtype)) for end in (qmin, qmax))
    return op.Clip(codes, low, high)
