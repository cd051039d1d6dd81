"""Shift-and-sum (Sec. 3.2.1): more rows of V for the tokens that get most attention, in the graph, image by image.

Which tokens are attentive, and how finely each is represented, follows the attention weights at hand, per row of the
batch and head. Both forms represent an attentive token by F / 2n, the sum of the 2n shifted codes of Eq. 9 over 2n:

    duplicate: 2n rows of codes of shifted values, with the weight divided by 2n (Eq. 13)
    residual:  the code itself, and one more row r = F - 2n v_hat with the weight divided by 2n

All of it is exact: V is put on a grid of 2^-15 steps first, on which the sums of Eq. 9 have no rounding in float32, and
the products are integers. So the two forms give the same integers (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes.graph_edit import constant

# The residual of order n reaches n, and in a product shared with smaller orders 64 of 1/128 steps.
LARGEST_ORDER = 64
FINEST = 2 * LARGEST_ORDER
GRID = float(2**15)
INT8, UINT8, INT64, FLOAT = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT64, ir.DataType.FLOAT


@dataclass(frozen=True)
class ShiftAndSum:
    """How attentive tokens are expanded.

    Attributes:
        form: "duplicate" or "residual".
        theta: a token is attentive if its mean attention (Eq. 11) is larger.
        places: for each stage, how many attentive tokens a row and head can have; the highest scores win.
        count_overflow: add an output that counts the attentive tokens without a place.
    """

    form: Literal["duplicate", "residual"]
    theta: float
    places: tuple[int, ...]
    count_overflow: bool = False

    def slots(self) -> list[int]:
        """For each stage, rows that all copies of `duplicate` need at most: 2n < 2 Score / theta, scores sum to 1."""
        most = int(2 / self.theta) + 1 if self.theta > 0 else FINEST * max(self.places)
        return [max(min(places * FINEST, most), 1) for places in self.places]


@dataclass(frozen=True)
class Term:
    """multiplier * codes @ values, a part of the integer product.

    Attributes:
        codes: uint8 [R, H, l, T], of the attention weights.
        values: int8 [R, H, T, d].
        counts: int8 [R, H, T, 1]: what each row adds to the sum of the weights.
        multiplier: of the product.
    """

    codes: ir.Value
    values: ir.Value
    counts: ir.Value
    multiplier: int = 1


@dataclass(frozen=True)
class AttentiveTokens:
    """The places of one stage: k of them for each row and head.

    Attributes:
        index: int64 [R, H, k], the token in each place.
        shift: float32 [R, H, k], m = log2(2n), 0 where the place is empty.
        two_n: float32 [R, H, k], 2^m.
        u: float32 [R, H, k, d], the values in steps of V's scale, from its lowest code.
    """

    index: ir.Value
    shift: ir.Value
    two_n: ir.Value
    u: ir.Value


def expand(
    op: OpBuilder,
    weights: ir.Value,
    value: ir.Value,
    v_scale: ir.Value,
    codes: ir.Value,
    powers: bool,
    bits: int,
    shift_and_sum: ShiftAndSum,
    stage: ir.Value | None,
) -> tuple[list[Term], ir.Value]:
    """The terms of the product with attentive tokens expanded, and how many of those had no place (int64 []).

    Args:
        weights: float32 [R, H, l, T], attention weights.
        value: float32 [R, H, T, d].
        v_scale: V's step size, broadcasts to [R, 1, 1, 1].
        codes: uint8 [R, H, l, T], of the weights.
        powers: whether a code c stands for a power of two, 2^(c - 1) units, and 0 for zero; else it stands for c.
        bits: of V.
        stage: int64 []; None where there is one stage.
    """
    qmax, zero_point = float(2**bits - 1), float(2 ** (bits - 1))
    steps = op.Round(op.Mul(value, op.Div(GRID, v_scale)))
    plain = _codes_of_steps(op, steps, bits)
    tokens, overflow = _attentive_tokens(op, weights, steps, bits, shift_and_sum, stage)
    ones = _like(op, plain, 1)
    if shift_and_sum.form == "residual":
        finer = _floor_codes(op, op.Add(op.Mul(_column(op, tokens.two_n), tokens.u), 0.5), None)
        finer = op.Min(finer, op.Mul(_column(op, tokens.two_n), qmax))
        coarse = _floor_codes(op, op.Add(tokens.u, 0.5), qmax)
        residual = op.Sub(finer, op.Mul(_column(op, tokens.two_n), coarse))
        extra_codes = _columns(op, codes, tokens.index)
        if powers:
            residual = op.Cast(residual, to=INT8)
            extra = Term(_divided(op, extra_codes, tokens.shift), residual, _like(op, residual, 0))
            return [Term(codes, plain, ones), extra], overflow
        residual = op.Mul(residual, op.Div(float(FINEST), _column(op, tokens.two_n)))
        residual = op.Cast(residual, to=INT8)
        extra = Term(extra_codes, residual, _like(op, residual, 0))
        return [Term(codes, plain, ones, FINEST), extra], overflow
    copies = _copies if powers else _repeated_copies
    owner, offset, valid = copies(op, tokens, shift_and_sum, stage)
    source = op.GatherElements(tokens.u, _spread(op, owner, tokens.u), axis=2)
    shifted = _floor_codes(op, op.Add(source, _column(op, offset)), qmax)
    valid = _column(op, valid)
    copied = op.Cast(op.Mul(op.Sub(shifted, zero_point), valid), to=INT8)
    copy_codes = _columns(op, codes, op.GatherElements(tokens.index, owner, axis=2))
    if powers:
        copy_codes = _divided(op, copy_codes, op.GatherElements(tokens.shift, owner, axis=2))
        counts = op.Cast(op.Slice(valid, [0], [1], [3]), to=INT8)
        kept = _undivided(op, codes, _scatter(op, weights, tokens.index, tokens.shift))
        return [Term(kept, plain, ones), Term(copy_codes, copied, counts)], overflow
    attentive = _scatter(op, weights, tokens.index, op.Cast(op.Greater(tokens.shift, 0.0), to=FLOAT))
    plain = op.Mul(plain, _column(op, op.Cast(op.Sub(1.0, attentive), to=INT8)))
    return [Term(codes, plain, ones, FINEST), Term(copy_codes, copied, _like(op, copied, 0))], overflow


def _codes_of_steps(op: OpBuilder, steps: ir.Value, bits: int) -> ir.Value:
    """clip(floor(v / s + 1/2), -z, M - z) of v in steps of 2^-15 s: int8.

    QuantizeLinear rounds ties to even; a quarter of a step moves them up, and nothing else past one.
    """
    z = 2 ** (bits - 1)
    grid, zero = constant(op, "grid", np.array(GRID, np.float32)), constant(op, "zero", np.array(0, np.int8))
    codes = op.QuantizeLinear(op.Add(steps, 0.25), grid, zero)
    if bits == 8:
        return codes
    return op.Clip(codes, *(constant(op, f"code.{end}", np.array(end, np.int8)) for end in (-z, z - 1)))


def _floor_codes(op: OpBuilder, x: ir.Value, qmax: float | None) -> ir.Value:
    """clip(floor(x), 0, qmax)."""
    return op.Max(op.Floor(x), 0.0) if qmax is None else op.Clip(op.Floor(x), 0.0, qmax)


def _attentive_tokens(
    op: OpBuilder,
    weights: ir.Value,
    steps: ir.Value,
    bits: int,
    shift_and_sum: ShiftAndSum,
    stage: ir.Value | None,
) -> tuple[AttentiveTokens, ir.Value]:
    """The highest scores (Eq. 11), their orders (Eq. 14) and values; and how many above theta have no place."""
    theta = np.float32(shift_and_sum.theta)
    score = op.ReduceMean(weights, [2], keepdims=0)
    places = _at_stage(op, "places", shift_and_sum.places, stage)
    # One at least, if unused: ONNX Runtime does not reduce an axis of what is empty.
    top, index = op.TopK(score, op.Clip(places, 1, op.Squeeze(op.Shape(weights, start=3))), axis=-1, _outputs=2)
    # ceil(log2(score / theta)) is how many of theta, 2 theta, 4 theta, ... lie below the score.
    doublings = np.float32(2) ** np.arange(FINEST.bit_length(), dtype=np.float32)
    thresholds = constant(op, "thresholds", theta * doublings[:-1])
    above = op.Cast(op.Greater(op.Unsqueeze(top, [-1]), thresholds), to=FLOAT)
    shift = op.ReduceSum(above, [-1], keepdims=0)
    if min(shift_and_sum.places) == 0:
        shift = op.Mul(shift, op.Cast(op.Min(places, 1), to=FLOAT))
    powers = constant(op, "powers", doublings)
    two_n = op.Gather(powers, op.Cast(shift, to=INT64))
    limit = constant(op, "theta", theta.reshape(()))
    placed = op.Greater(shift, 0.0)
    counted = [op.ReduceSum(op.Cast(x, to=INT64), keepdims=0) for x in (op.Greater(score, limit), placed)]
    values = op.Mul(op.GatherElements(steps, _spread(op, index, steps), axis=2), 1 / GRID)
    # Beyond these no code changes.
    u = op.Clip(op.Add(values, float(2 ** (bits - 1))), -1.0, float(2**bits))
    return AttentiveTokens(index, shift, two_n, u), op.Sub(*counted)


def _copies(
    op: OpBuilder, tokens: AttentiveTokens, shift_and_sum: ShiftAndSum, stage: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """2n slots for each attentive token, one token's after the other's.

    Returns:
        owner int64 [R, H, J], the place a slot belongs to; the offset (2j + 1) / 4n of copy j, a half step more than
        Eq. 9's shift; whether the slot is used, float32.
    """
    counts = op.Mul(tokens.two_n, op.Cast(op.Greater(tokens.shift, 0.0), to=FLOAT))
    ends = op.CumSum(counts, constant(op, "places_axis", np.array(2)))
    slots = op.Squeeze(_at_stage(op, "slots", shift_and_sum.slots(), stage), [0])
    slot = op.Cast(op.Range(op.Constant(value_int=0), slots, op.Constant(value_int=1)), to=FLOAT)
    passed = op.GreaterOrEqual(op.Unsqueeze(slot, [1]), op.Unsqueeze(ends, [2]))
    owner = op.ReduceSum(op.Cast(passed, to=INT64), [-1], keepdims=0)
    places = op.Shape(tokens.index, start=2)
    valid = op.Cast(op.Less(owner, places), to=FLOAT)
    owner = op.Min(owner, op.Sub(places, 1))
    start = op.GatherElements(op.Sub(ends, counts), owner, axis=2)
    two_n = op.GatherElements(tokens.two_n, owner, axis=2)
    copy = op.Sub(slot, start)
    return owner, op.Div(op.Add(op.Mul(copy, 2.0), 1.0), op.Mul(two_n, 2.0)), valid


def _repeated_copies(
    op: OpBuilder, tokens: AttentiveTokens, shift_and_sum: ShiftAndSum, stage: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """128 slots for each place, each of the 2n copies 64 / n times: linear codes cannot be divided by 2n exactly."""
    shape = op.Shape(tokens.index)
    each = op.Mul(op.Slice(shape, [2], [3], [0]), FINEST)
    slot = op.Range(op.Constant(value_int=0), op.Squeeze(each, [0]), op.Constant(value_int=1))
    owner = op.Expand(op.Div(slot, FINEST), op.Concat(op.Slice(shape, [0], [2], [0]), each, axis=0))
    two_n = op.GatherElements(tokens.two_n, owner, axis=2)
    repeat = op.Cast(op.Mod(slot, FINEST), to=FLOAT)
    copy = op.Floor(op.Div(op.Mul(repeat, two_n), float(FINEST)))
    valid = op.Cast(op.Greater(two_n, 1.0), to=FLOAT)
    return owner, op.Div(op.Add(op.Mul(copy, 2.0), 1.0), op.Mul(two_n, 2.0)), valid


def _at_stage(op: OpBuilder, name: str, table: Sequence[int], stage: ir.Value | None) -> ir.Value:
    """A stage's entry as int64 [1]."""
    values = constant(op, name, np.array(table, np.int64))
    return values if stage is None else op.Gather(values, op.Unsqueeze(stage, [0]))


def _column(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Unsqueeze(x, [-1])


def _spread(op: OpBuilder, index: ir.Value, like: ir.Value) -> ir.Value:
    """An index [R, H, k] for each of the last dimension's d entries: [R, H, k, d]."""
    return op.Expand(_column(op, index), op.Concat([1, 1, 1], op.Shape(like, start=3), axis=0))


def _columns(op: OpBuilder, codes: ir.Value, index: ir.Value) -> ir.Value:
    """Columns of [R, H, l, T] by an index [R, H, k]: [R, H, l, k]."""
    queries = op.Concat([1, 1], op.Shape(codes, start=2, end=3), [1], axis=0)
    return op.GatherElements(codes, op.Expand(op.Unsqueeze(index, [2]), queries), axis=3)


def _scatter(op: OpBuilder, weights: ir.Value, index: ir.Value, updates: ir.Value) -> ir.Value:
    """Zeros [R, H, T] with the updates [R, H, k] at the index."""
    shape = op.Concat(op.Shape(weights, end=2), op.Shape(weights, start=3), axis=0)
    zeros = op.ConstantOfShape(shape, value=ir.tensor([0.0], dtype=FLOAT))
    return op.ScatterElements(zeros, index, updates, axis=2)


def _divided(op: OpBuilder, codes: ir.Value, shift: ir.Value) -> ir.Value:
    """max(c - m, 0), a weight over 2n if it can be divided: uint8 [R, H, l, k] and m float32 [R, H, k]."""
    by = op.Unsqueeze(op.Cast(shift, to=UINT8), [2])
    return op.Sub(op.Max(codes, by), by)


def _undivided(op: OpBuilder, codes: ir.Value, shift: ir.Value) -> ir.Value:
    """The codes of weights that are not divided, zero for the others: uint8 [R, H, l, T] and m float32 [R, H, T]."""
    largest = op.Unsqueeze(op.Cast(op.Where(op.Greater(shift, 0.0), shift, 255.0), to=UINT8), [2])
    return op.Where(op.Greater(codes, largest), constant(op, "no_code", np.array(0, np.uint8)), codes)


def _like(op: OpBuilder, values: ir.Value, number: int) -> ir.Value:
    """int8 [R, H, T, 1], all `number`."""
    shape = op.Concat(op.Shape(values, end=3), [1], axis=0)
    return op.ConstantOfShape(shape, value=ir.tensor([number], dtype=INT8))
