"""Sampling of bits inside the graph, as docs/bundle.md defines it and `models/infinity/reference.py` does it."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder


def sample_bits(
    op: OpBuilder, logits: ir.Value, uniforms: ir.Value, forced: ir.Value, tau: ir.Value, top_p: ir.Value
) -> ir.Value:
    """Take one bit each: 1 where u >= p0, with p0 = 1 / (1 + exp(logit / tau)).

    Probabilities are in float64, since ONNX Runtime's float32 sigmoid is an approximation that moves ties.

    Args:
        logits: log-odds of 1, float32 [B, l, D], after guidance.
        uniforms: float32 [B, l, D].
        forced: int64 [B, l, D]; -1 samples, any other value is taken.
        tau: float32 [1].
        top_p: float32 []; where the rarer value's probability is at most 1 - top_p the other is taken, and of two
            equally probable ones 1; 0 is off.
    Returns:
        int64 [B, l, D].
    """
    log_odds = _double(op, op.Div(logits, tau))
    rarer = op.Div(1.0, op.Add(op.Exp(op.Abs(log_odds)), 1.0))
    one_is_likelier = op.GreaterOrEqual(log_odds, 0.0)
    drawn = op.GreaterOrEqual(_double(op, uniforms), op.Where(one_is_likelier, rarer, op.Sub(1.0, rarer)))
    certain = op.And(op.Greater(top_p, 0.0), op.LessOrEqual(rarer, op.Sub(1.0, _double(op, top_p))))
    bits = op.Or(op.And(certain, one_is_likelier), op.And(op.Not(certain), drawn))
    return op.Where(op.Less(forced, 0), op.Cast(bits, to=ir.DataType.INT64), forced)


def _double(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Cast(x, to=ir.DataType.DOUBLE)
