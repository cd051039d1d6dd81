"""Sampling inside the graph, as docs/bundle.md defines it: the official sampler's sets, cumulated in codebook order."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.graph_builder import branch

# The largest u that is looked for: u * total stays below total in float32, so that an entry is always found.
MAX_UNIFORM = 1 - 2**-23
# The smallest and largest u that noise is made of: -log(-log(u)) is finite. Philox gives multiples of 2^-24.
NOISE_UNIFORMS = 2**-25, 1 - 2**-24


def sample(
    op: OpBuilder, logits: ir.Value, uniforms: ir.Value, forced: ir.Value, top_k: ir.Value, top_p: ir.Value
) -> ir.Value:
    """Take one token a row.

    Args:
        logits: float32 [B, l, V], after guidance.
        uniforms: float32 [B, l].
        forced: int64 [B, l]; -1 samples, any other value is taken.
        top_k, top_p: int64 [], float32 []; 0 is off.
    Returns:
        int64 [B, l].
    """
    maximum = op.ReduceMax(logits, [-1], keepdims=1)
    mass = op.Exp(op.Sub(logits, maximum))
    weights = op.Where(op.Less(logits, _smallest_kept(op, logits, maximum, mass, top_k, top_p)), 0.0, mass)
    sampled = _first_past(op, weights, op.Min(uniforms, MAX_UNIFORM))
    return op.Where(op.Less(forced, 0), sampled, forced)


def smooth_weights(
    op: OpBuilder,
    logits: ir.Value,
    uniforms: ir.Value,
    top_k: ir.Value,
    top_p: ir.Value,
    sharpness: ir.Value,
    inverse_tau: ir.Value,
) -> ir.Value:
    """softmax(sharpness * logits + gumbel / tau) over the kept entries, with gumbel = -log(-log(u)) (Gumbel-softmax).

    Args:
        logits: float32 [B, n, V], after guidance.
        uniforms: float32 [B, n, V].
        top_k, top_p: int64 [], float32 []; 0 is off.
        sharpness, inverse_tau: float32 [1].
    Returns:
        float32 [B, n, V].
    """
    maximum = op.ReduceMax(logits, [-1], keepdims=1)
    below = op.Sub(logits, maximum)  # softmax is the same for it, and large logits do not round it away
    threshold = _smallest_kept(op, logits, maximum, op.Exp(below), top_k, top_p)
    gumbel = op.Neg(op.Log(op.Neg(op.Log(op.Clip(uniforms, *NOISE_UNIFORMS)))))
    exponent = op.Add(op.Mul(below, sharpness), op.Mul(gumbel, inverse_tau))
    return op.Softmax(op.Where(op.Less(logits, threshold), -float("inf"), exponent), axis=-1)


def _first_past(op: OpBuilder, weights: ir.Value, uniforms: ir.Value) -> ir.Value:
    """The first entry whose cumulated weight exceeds uniform * total: [B, l, V], [B, l] -> int64 [B, l].

    Found block by block and then inside the block, since ONNX Runtime cumulates slowly: a fifteenth of the time.
    """
    blocks = op.Reshape(weights, [0, 0, -1, _block(weights)])
    sums = op.ReduceSum(blocks, [-1], keepdims=0)
    ends = op.CumSum(sums, -1)
    target = op.Unsqueeze(op.Mul(uniforms, _last(op, ends)), [-1])
    block = _count(op, op.LessOrEqual(ends, target))
    begin = op.GatherND(op.CumSum(sums, -1, exclusive=1), block, batch_dims=2)
    inside = op.CumSum(op.GatherND(blocks, block, batch_dims=2), -1)
    # Rounding may leave less in the block than is looked for: then its last entry that has a weight is found.
    rest = op.Min(op.Sub(op.Squeeze(target, [-1]), begin), op.Mul(_last(op, inside), MAX_UNIFORM))
    within = _count(op, op.LessOrEqual(inside, op.Unsqueeze(rest, [-1])))
    return op.Squeeze(op.Add(op.Mul(block, _block(weights)), within), [-1])


def _block(weights: ir.Value) -> int:
    """Entries of a block: the largest divisor of V up to its square root."""
    assert weights.shape is not None
    entries = weights.shape[-1]
    assert isinstance(entries, int)
    return max(divisor for divisor in range(1, math.isqrt(entries) + 1) if entries % divisor == 0)


def _last(op: OpBuilder, x: ir.Value) -> ir.Value:
    """The last entry of each row: [B, l, n] -> [B, l]."""
    return op.Squeeze(op.Slice(x, [-1], [2**31 - 1], [-1]), [-1])


def _count(op: OpBuilder, passed: ir.Value) -> ir.Value:
    """How many are true: bool [B, l, n] -> int64 [B, l, 1]. As many as the index of the first that is not."""
    counted = op.ReduceSum(op.Cast(passed, to=ir.DataType.FLOAT), [-1], keepdims=1)
    return op.Cast(counted, to=ir.DataType.INT64)


def _smallest_kept(
    op: OpBuilder, logits: ir.Value, maximum: ir.Value, mass: ir.Value, top_k: ir.Value, top_p: ir.Value
) -> ir.Value:
    """The smallest logit that top_k and top_p keep, float32 [B, l, 1] (or [1, 1, 1] with both off)."""

    def filtered(op: OpBuilder) -> list[ir.Value]:
        # Without top_k all V entries are candidates.
        vocab_size = op.Shape(logits, start=-1)
        k = op.Unsqueeze(op.Where(op.Greater(top_k, 0), top_k, op.Squeeze(vocab_size, [0])), [0])
        candidates, _ = op.TopK(logits, k, axis=-1, largest=1, sorted=1, _outputs=2)
        better = op.CumSum(op.Exp(op.Sub(candidates, maximum)), -1, exclusive=1)
        # top_k also keeps what equals the k-th largest, though it is no candidate: it counts for top_p's whole.
        kth = op.Slice(candidates, [-1], [2**31 - 1], [-1])
        total = op.ReduceSum(op.Where(op.Less(logits, kth), 0.0, mass), [-1], keepdims=1)
        limit = op.Mul(op.Where(op.Greater(top_p, 0.0), top_p, 2.0), total)
        # In a run of equal candidates the first is kept if any is: the threshold keeps or drops them together.
        kept = op.Where(op.Less(better, limit), candidates, float("inf"))
        return [op.ReduceMin(kept, [-1], keepdims=1)]

    def unfiltered(op: OpBuilder) -> list[ir.Value]:
        return [op.Constant(value=ir.tensor([[[-float("inf")]]], dtype=ir.DataType.FLOAT))]

    filters = op.Or(op.Greater(top_k, 0), op.Greater(top_p, 0.0))
    (threshold,) = branch(op, filters, filtered, unfiltered, ["sampling.threshold"])
    return threshold
