"""Shift-and-sum (Sec. 3.2.1): more rows of V for the tokens that get most attention, in the graph, image by image.

Which tokens are attentive, and how finely each is represented, follows the attention weights at hand, per row of the
batch and head. Both forms represent an attentive token by F / 2n, the sum of the 2n shifted codes of Eq. 9 over 2n:

    duplicate: 2n rows of codes of shifted values, with the weight divided by 2n (Eq. 13)
    residual:  the code itself, and one more row r = F - 2n v_hat with the weight divided by 2n

Orders n share one product: 1/2n is a multiple of 1/128, so residuals are multiplied by 64/n, copies come 64/n times,
and the sum of all is divided by 128. Residuals lie in their tokens' places, so that no weights need to be gathered.

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

from nextscale.graph_passes._graph_edit import constant
from nextscale.runtime._errors import NextscaleError

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
        places: for each stage, how many attentive tokens per row and head can have; the highest scores win.
        count_overflow: add an output that counts the attentive tokens without a place.
    """

    form: Literal["duplicate", "residual"]
    theta: float
    places: tuple[int, ...]
    count_overflow: bool = False

    def check(self, num_stages: int) -> None:
        """Raise NextscaleError unless it fits a model of `num_stages`."""
        if not 0 <= self.theta <= 1:
            raise NextscaleError(f"shift-and-sum: theta is {self.theta}; expected 0 to 1")
        if len(self.places) != num_stages or min(self.places) < 0:
            raise NextscaleError(
                f"shift-and-sum: places are {list(self.places)}; expected {num_stages} numbers of at least 0"
            )


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
        steps: float32 [R, H, k, d], the values in steps of 2^-15 of V's scale.
    """

    index: ir.Value
    shift: ir.Value
    two_n: ir.Value
    steps: ir.Value


def expand(
    op: OpBuilder,
    weights: ir.Value,
    value: ir.Value,
    v_scale: ir.Value,
    codes: ir.Value,
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
        bits: of V.
        stage: int64 []; None where there is one stage.
    """
    steps = op.Round(op.Mul(value, op.Div(GRID, v_scale)))
    plain = _codes_of_steps(op, steps, bits)
    ones = column_like(op, plain, 1)
    tokens, overflow = _attentive_tokens(op, weights, steps, shift_and_sum, stage)
    if shift_and_sum.form == "residual":
        residual = _placed(op, _residual(op, tokens, bits), tokens.index, plain)
        return [Term(codes, plain, ones, FINEST), Term(codes, residual, column_like(op, residual, 0))], overflow
    copied, owner = _copies(op, tokens, bits)
    is_plain = op.Equal(_scatter(op, weights, tokens.index, tokens.shift), 0.0)
    plain = op.Mul(plain, _column(op, op.Cast(is_plain, to=INT8)))
    copy_codes = _columns(op, codes, op.GatherElements(tokens.index, owner, axis=2))
    return [Term(codes, plain, ones, FINEST), Term(copy_codes, copied, column_like(op, copied, 0))], overflow


def column_like(op: OpBuilder, values: ir.Value, number: int) -> ir.Value:
    """int8 [R, H, T, 1], all `number`, for values [R, H, T, d]."""
    shape = op.Concat(op.Shape(values, end=3), [1], axis=0)
    return op.ConstantOfShape(shape, value=ir.tensor([number], dtype=INT8))


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


def _attentive_tokens(
    op: OpBuilder,
    weights: ir.Value,
    steps: ir.Value,
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
    return AttentiveTokens(index, shift, two_n, _rows(op, steps, index)), op.Sub(*counted)


def _residual(op: OpBuilder, tokens: AttentiveTokens, bits: int) -> ir.Value:
    """64/n times r, the nearest number of 1/2n steps that the value is above its code: int8 [R, H, k, d]."""
    two_n, z = _column(op, tokens.two_n), 2 ** (bits - 1)
    # Beyond the first and last code all copies are clipped.
    steps = op.Clip(tokens.steps, -z * GRID, (z - 1) * GRID)
    codes = op.Floor(op.Add(op.Mul(steps, 1 / GRID), 0.5))
    rest = op.Sub(steps, op.Mul(codes, GRID))
    residual = op.Floor(op.Add(op.Mul(rest, op.Mul(two_n, 1 / GRID)), 0.5))
    return op.Cast(op.Mul(residual, op.Div(float(FINEST), two_n)), to=INT8)


def _copies(op: OpBuilder, tokens: AttentiveTokens, bits: int) -> tuple[ir.Value, ir.Value]:
    """128 rows for each place, each of the 2n codes of shifted values (Eq. 9) 64/n times; zeros if the place is empty.

    Returns:
        the codes int8 [R, H, 128 k, d]; the place that each belongs to, int64 [R, H, 128 k].
    """
    z = 2 ** (bits - 1)
    shape = op.Shape(tokens.index)
    each = op.Mul(op.Slice(shape, [2], [3], [0]), FINEST)
    slot = op.Range(op.Constant(value_int=0), op.Squeeze(each, [0]), op.Constant(value_int=1))
    owner = op.Expand(op.Div(slot, FINEST), op.Concat(op.Slice(shape, [0], [2], [0]), each, axis=0))
    two_n = op.GatherElements(tokens.two_n, owner, axis=2)
    copy = op.Floor(op.Div(op.Mul(op.Cast(op.Mod(slot, FINEST), to=FLOAT), two_n), float(FINEST)))
    # A half more than the shift of Eq. 9, from its lowest, and so never negative: (2j + 1) / 4n for copy j.
    offset = op.Div(op.Add(op.Mul(copy, 2.0), 1.0), op.Mul(two_n, 2.0))
    # Where the codes of all copies have reached their end.
    steps = op.Clip(_rows(op, tokens.steps, owner), -(z + 1) * GRID, z * GRID)
    codes = op.Floor(op.Add(op.Mul(steps, 1 / GRID), _column(op, offset)))
    codes = op.Mul(op.Clip(codes, -float(z), float(z - 1)), _column(op, op.Cast(op.Greater(two_n, 1.0), to=FLOAT)))
    return op.Cast(codes, to=INT8), owner


def _at_stage(op: OpBuilder, name: str, table: Sequence[int], stage: ir.Value | None) -> ir.Value:
    """A stage's entry as int64 [1]."""
    values = constant(op, name, np.array(table, np.int64))
    return values if stage is None else op.Gather(values, op.Unsqueeze(stage, [0]))


def _column(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Unsqueeze(x, [-1])


def _rows(op: OpBuilder, x: ir.Value, index: ir.Value) -> ir.Value:
    """Rows of [R, H, T, d] by an index [R, H, k]: [R, H, k, d]."""
    return op.GatherND(x, _column(op, index), batch_dims=2)


def _placed(op: OpBuilder, rows: ir.Value, index: ir.Value, like: ir.Value) -> ir.Value:
    """Zeros of the shape [R, H, T, d] of `like`, with the rows int8 [R, H, k, d] at the index [R, H, k]."""
    shape = op.Shape(index)
    place = op.Range(
        op.Constant(value_int=1), op.Add(op.Squeeze(op.Shape(index, start=2)), 1), op.Constant(value_int=1)
    )
    nowhere = op.ConstantOfShape(op.Shape(like, end=3), value=ir.tensor([0], dtype=INT64))
    places = op.ScatterElements(nowhere, index, op.Expand(place, shape), axis=2)
    nothing = op.ConstantOfShape(
        op.Concat(op.Shape(like, end=2), [1], op.Shape(like, start=3), axis=0), value=ir.tensor([0], dtype=INT8)
    )
    return _rows(op, op.Concat(nothing, rows, axis=2), places)


def _columns(op: OpBuilder, codes: ir.Value, index: ir.Value) -> ir.Value:
    """Columns of [R, H, l, T] by an index [R, H, k]: [R, H, l, k]."""
    queries = op.Concat([1, 1], op.Shape(codes, start=2, end=3), [1], axis=0)
    return op.GatherElements(codes, op.Expand(op.Unsqueeze(index, [2]), queries), axis=3)


def _scatter(op: OpBuilder, weights: ir.Value, index: ir.Value, updates: ir.Value) -> ir.Value:
    """Zeros [R, H, T] with the updates [R, H, k] at the index."""
    shape = op.Concat(op.Shape(weights, end=2), op.Shape(weights, start=3), axis=0)
    zeros = op.ConstantOfShape(shape, value=ir.tensor([0.0], dtype=FLOAT))
    return op.ScatterElements(zeros, index, updates, axis=2)
