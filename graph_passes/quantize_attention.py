"""Integer attention: both products in u8 x s8, whatever the nodes are called (docs/quantization.md, "Attention").

    query, key -> codes -> MatMulIntegerToFloat -> ... -> Softmax -> codes -+
                                                     value -> codes --------+-> integer product -> rescale

The weights' quantizer decides how their codes are made and what the product is divided by. Shift-and-sum, which makes
more rows of attentive tokens, stands between the codes and the product (`expand_attentive_tokens`).

A query that a mask leaves no token to has weights that are NaN, or zeros where the model guards against that: its
output is the same as in float, and no other's depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes._dynamic_ranges import (
    LEAST_SCALE,
    by_row,
    image_extreme,
    positive,
    quantize_images,
    quantize_rows,
)
from nextscale.graph_passes._four_axes import as_before, four_axes
from nextscale.graph_passes._graph_edit import MICROSOFT, constant, integer_matmul, replace, splice
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum, Term, column_like, expand
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import AttentionWeights

# Powers of two, next to each other, that the codes of a row of weights tell apart; smaller weights are zero.
POWERS = 15


@dataclass(frozen=True)
class Magnitudes:
    """The largest |query|, |key| and |value| that calibration saw."""

    query: float
    key: float
    value: float

    @classmethod
    def of(cls, query: Range, key: Range, value: Range) -> Magnitudes:
        """Over all stages."""
        ends = (found.over_stages() for found in (query, key, value))
        return cls(*(float(max(-found.minimum[0], found.maximum[0])) for found in ends))


def quantize_attention(
    model: ir.Model,
    weights: AttentionWeights,
    bits: int,
    rows: int = 1,
    magnitudes: Mapping[str, Magnitudes] | None = None,
    shift_and_sum: ShiftAndSum | Mapping[str, ShiftAndSum] | None = None,
    stage_input: str | None = None,
    names: Collection[str] | None = None,
) -> ir.Model:
    """A copy of `model` whose attention is integer.

    Args:
        model: any graph with the pattern MatMul - Softmax - MatMul on [R, H, l, d], or on other numbers of axes
            (`_four_axes`).
        weights: the quantizer of the attention weights.
        bits: of all four operands, 2 to 8.
        rows: how many rows of the batch are one image: rows r, r + R / rows, ...
        magnitudes: static ranges by the name of the second MatMul; None is dynamic, for each image.
        shift_and_sum: how attentive tokens are expanded, of all or by the name of the second MatMul; None leaves V to
            its quantizer.
        stage_input: the graph input (int64 []) that chooses shift-and-sum's places; None where there is one stage.
        names: of the second MatMul of each attention to quantize; None: all of them.
    Raises:
        ValueError: the graph has no attention, or one of `names` is none, `magnitudes` lacks one, no input is
            `stage_input`, there are places for several stages without one, or the attentive tokens of a subgraph are
            to be counted.
    """
    model = model.clone()
    model.opset_imports.setdefault(MICROSOFT, 1)
    patterns = [found for found in attention_patterns(model.graph) if names is None or found.name in names]
    missing = {*(names or ())} - {found.name for found in patterns}
    if missing or not patterns:
        raise ValueError(f"no MatMul - Softmax - MatMul in the graph{f': {min(missing)!r}' if missing else ''}")
    stage = next((value for value in model.graph.inputs if value.name == stage_input), None)
    if stage is None and stage_input is not None:
        raise ValueError(f"the graph has no input {stage_input!r}")
    for pattern in patterns:
        expanded = shift_and_sum[pattern.name] if isinstance(shift_and_sum, Mapping) else shift_and_sum
        if stage is None and expanded is not None and len(expanded.places) != 1:
            raise ValueError(f"places for {len(expanded.places)} stages, but no input tells the stage")
        if expanded is not None and expanded.count_overflow and pattern.graph is not model.graph:
            raise ValueError(f"{pattern.name} is in a subgraph; attentive tokens are counted in the main graph only")
        if magnitudes is not None and pattern.name not in magnitudes:
            raise ValueError(f"no magnitudes for the attention {pattern.name!r}")
        known = None if magnitudes is None else magnitudes[pattern.name]
        _quantize_scores(pattern, bits, rows, known)
        overflow = _quantize_mix(pattern, weights, bits, rows, known, expanded, stage)
        if overflow is not None and expanded is not None and expanded.count_overflow:
            overflow.name, overflow.dtype, overflow.shape = overflow_name(pattern.name), ir.DataType.INT64, ir.Shape([])
            model.graph.outputs.append(overflow)
    return model


def overflow_name(mix: str) -> str:
    """The output that counts the attentive tokens without a place in the attention whose second MatMul is `mix`."""
    return f"overflow.{mix}"


def _quantize_scores(pattern: AttentionPattern, bits: int, rows: int, known: Magnitudes | None) -> None:
    """query key with both as codes of one symmetric range each."""

    def body(op: OpBuilder, query: ir.Value, key: ir.Value) -> Sequence[ir.Value]:
        middle, left, rank = 2 ** (bits - 1), query, _rank(pattern.query)
        query, key = (four_axes(op, operand, rank) for operand in (query, key))
        q_scale = symmetric_scale(op, "query", query, bits, rows, None if known is None else known.query)
        k_scale = symmetric_scale(op, "key", key, bits, rows, None if known is None else known.key)
        zero_point = constant(op, "middle", np.array(middle, np.uint8))
        codes = quantize_images(op, query, q_scale, zero_point, 0, 2**bits - 1)
        keys = signed_codes(op, key, k_scale, bits)
        one = constant(op, "one", np.array(1, np.float32))
        scale = op.Mul(q_scale, k_scale)
        if known is None:
            scale = by_row(op, scale, 4)
        product = integer_matmul(op, codes, keys, scale, one, zero_point, name=pattern.scores.name)
        return [as_before(op, product, left, rank)]

    operands = [pattern.query, pattern.key]
    (product,) = splice(pattern.graph, f"{pattern.name}/scores", operands, body, before=pattern.scores)
    replace(pattern.scores.outputs[0], product)


def _quantize_mix(
    pattern: AttentionPattern,
    weights: AttentionWeights,
    bits: int,
    rows: int,
    known: Magnitudes | None,
    shift_and_sum: ShiftAndSum | None,
    stage: ir.Value | None,
) -> ir.Value | None:
    """weights value with the weights as codes of their quantizer; returns the overflow counter, if there is one."""

    def body(
        op: OpBuilder, logits: ir.Value, a: ir.Value, v: ir.Value, stage: ir.Value | None = None
    ) -> Sequence[ir.Value]:
        left = a
        logits, a, v = (four_axes(op, operand, rank) for operand in (logits, a, v))
        total = None
        if masked:
            total = op.ReduceSum(a, [-1], keepdims=1)
            hidden = op.Not(op.Greater(total, 0.0))  # true of NaN, too
            logits, a = (op.Where(hidden, 0.0, operand) for operand in (logits, a))
        v_scale = symmetric_scale(op, "value", v, bits, rows, None if known is None else known.value)
        v_unit = v_scale if known is not None else by_row(op, v_scale, 4)
        powers = weights.startswith("log2")
        codes = _powers_of_two(op, logits, a, bits, rows, weights, masked) if powers else _linear(op, a, bits, weights)
        if shift_and_sum is None:
            values = signed_codes(op, v, v_scale, bits)
            terms, overflow = [Term(codes.codes, values, column_like(op, values, 1))], list[ir.Value]()
        else:
            terms, counter = expand(op, a, v, v_unit, codes.codes, bits, shift_and_sum, stage)
            overflow = [counter]
        product = _mix(op, codes, terms, v_unit)
        if total is not None:
            product = op.Where(hidden, total, product)
        return [as_before(op, product, left, rank), *overflow]

    masked, rank = pattern.is_masked, pattern.rank
    operands = [pattern.logits, pattern.weights, pattern.value]
    if stage is not None and shift_and_sum is not None:
        operands.append(stage)
    product, *overflow = splice(pattern.graph, f"{pattern.name}/integer", operands, body, before=pattern.mix)
    replace(pattern.mix.outputs[0], product)
    return overflow[0] if overflow else None


def _rank(value: ir.Value) -> int:
    assert value.shape is not None
    return len(value.shape)


def symmetric_scale(op: OpBuilder, name: str, x: ir.Value, bits: int, rows: int, magnitude: float | None) -> ir.Value:
    """2a / M of the known magnitude a, or of each image's: float32 [R], or [] if it is known."""
    steps = 2**bits - 1
    if magnitude is not None:
        scale = np.float32(2 * magnitude / steps)
        return constant(op, f"{name}_scale", np.maximum(scale, np.float32(LEAST_SCALE)).reshape(()))
    return positive(op, op.Mul(image_extreme(op, op.Abs(x), rows, largest=True), 2 / steps))


def signed_codes(op: OpBuilder, x: ir.Value, scale: ir.Value, bits: int) -> ir.Value:
    """s8 codes of x [R, H, T, d], centred."""
    zero_point = constant(op, "signed_zero_point", np.array(0, np.int8))
    return quantize_images(op, x, scale, zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class WeightCodes:
    """Codes of attention weights.

    Attributes:
        codes: uint8 [R, H, l, T].
        powers: whether a code c from 1 to POWERS stands for 2^(c - 1) units, and 0 for zero; else it stands for c.
        scale: of a unit, broadcasts to [R, H, l, d]; None: the product is divided by the sum of the weights' codes.
    """

    codes: ir.Value
    powers: bool
    scale: ir.Value | None


def _powers_of_two(
    op: OpBuilder, logits: ir.Value, a: ir.Value, bits: int, rows: int, weights: AttentionWeights, masked: bool
) -> WeightCodes:
    """POWERS - (x - x_row), at least 0, with x = clip(round(-log2(A / s)), 0, M) (Eq. 4) and x_row the row's least.

    A row's logits are the logarithms of its weights up to a constant, so that no logarithm of A is taken: with p the
    largest weight of the row and z its logit, ln(A / s) = logit - (z + ln(s / p)). What a mask leaves out is zero, also
    where M is the least of all powers.
    """
    ln2, most = math.log(2), 2**bits - 1
    shift, least, unit = op.ReduceMax(logits, [-1], keepdims=1), None, None
    if weights == "log2":
        p = op.ReduceMax(a, [-1], keepdims=1)
        s = by_row(op, image_extreme(op, p, rows, largest=True), 4)
        below = op.Div(op.Log(op.Div(s, p)), ln2)
        least = op.Min(op.Round(below), float(most))
        shift = op.Add(shift, op.Mul(op.Sub(below, least), ln2))
        unit = op.Mul(op.Mul(s, 2.0 ** (1 - POWERS)), op.Pow(0.5, least))
    step = constant(op, "ln2", np.array(ln2, np.float32))
    codes = op.QuantizeLinear(op.Sub(logits, shift), step, _u8(op, POWERS))
    if most <= POWERS:  # else x reaches no M within a row
        last = POWERS - most
        floor = _u8(op, last) if least is None else op.Cast(op.Add(least, float(last)), to=ir.DataType.UINT8)
        codes = op.Max(codes, floor)
        if masked:
            codes = op.Where(op.Greater(a, 0.0), codes, _u8(op, 0))
    return WeightCodes(codes, True, unit)


def _linear(op: OpBuilder, a: ir.Value, bits: int, weights: AttentionWeights) -> WeightCodes:
    """c = round(M A), or round(M A / rowmax(A))."""
    qmax = 2**bits - 1
    zero_point = constant(op, "weights_zero_point", np.array(0, np.uint8))
    if weights == "uniform":
        scale = constant(op, "weights_scale", np.array(1 / qmax, np.float32))
        return WeightCodes(quantize_images(op, a, scale, zero_point, 0, qmax), False, scale)
    scale = positive(op, op.Mul(op.ReduceMax(a, [-1], keepdims=1), 1 / qmax))
    return WeightCodes(quantize_rows(op, a, scale, zero_point, 0, qmax), False, None)


def _mix(op: OpBuilder, codes: WeightCodes, terms: Sequence[Term], v_scale: ir.Value) -> ir.Value:
    """The integer product of all terms, rounded to float32 once (one term: of up to 1,023 tokens), and its rescale."""
    normalized = codes.scale is None
    limbs, sums = dict[ir.Value, list[Limb]](), dict[int, ir.Value]()
    for term in terms:
        values = op.Concat(term.values, term.counts, axis=3) if normalized else term.values
        if term.codes not in limbs:
            limbs[term.codes] = _limbs(op, term.codes, codes.powers)
        for limb in limbs[term.codes]:
            part = op.MatMulInteger(limb.operand, values, *([] if limb.zero_point is None else [limb.zero_point]))
            multiplier = limb.multiplier * term.multiplier
            sums[multiplier] = op.Add(sums[multiplier], part) if multiplier in sums else part
    # The limbs of one term are exact in float32; with more terms only float64 makes both forms of shift-and-sum equal.
    number = ir.DataType.FLOAT if len(terms) == 1 else ir.DataType.DOUBLE
    total = None
    for multiplier, integers in sums.items():
        part = op.Cast(integers, to=number)
        if multiplier != 1:
            part = op.Mul(part, constant(op, f"multiplier.{multiplier}", np.array(multiplier, number.numpy())))
        total = part if total is None else op.Add(total, part)
    if number != ir.DataType.FLOAT:
        total = op.Cast(total, to=ir.DataType.FLOAT)
    assert total is not None
    if not normalized:
        scale = op.Mul(v_scale, codes.scale)
        multiplier = terms[0].multiplier
        return op.Mul(total, scale if multiplier == 1 else op.Div(scale, float(multiplier)))
    width = op.Shape(terms[0].values, start=3)
    product, count = (op.Slice(total, begin, end, [3]) for begin, end in (([0], width), (width, op.Add(width, 1))))
    return op.Mul(op.Div(product, count), v_scale)


@dataclass(frozen=True)
class Limb:
    """multiplier * (operand - zero_point), a part of the weights' codes: uint8 [R, H, l, T]."""

    operand: ir.Value
    zero_point: ir.Value | None = None
    multiplier: int = 1


def _limbs(op: OpBuilder, codes: ir.Value, powers: bool) -> list[Limb]:
    """Linear codes as they are; powers of two in two.

    2^(c - 1) = lo + 128 (hi - 1) with lo = 2^(min(c, 8) - 1), zero for c = 0, and hi = 2^(max(c, 8) - 8).
    """
    if not powers:
        return [Limb(codes)]
    # ONNX Runtime's Min and Max have no kernels for uint8 before 1.24.
    low, high = (op.Clip(codes, None, _u8(op, 8)), op.Clip(codes, _u8(op, 8)))
    return [Limb(_power(op, low, 1)), Limb(_power(op, high, 8), _u8(op, 1), 128)]


def _power(op: OpBuilder, codes: ir.Value, of_one: int) -> ir.Value:
    """2^(c - of_one) of codes c from of_one to of_one + 7, zero of the code below: uint8.

    A sigmoid of integers is a table of 256 entries, and below zero it is nearly the exponential function. The largest
    power lies ten steps below zero: the sigmoid is a thousandth less than exponential there, and farther below ONNX
    Runtime's own is inexact. Steps are a little longer than ln 2, so that what would be a half is less and becomes
    zero, while the powers are still rounded to what they are.
    """
    step = 1.008 * math.log(2)
    scales = [("power_step", step), ("power_unit", math.exp(-10 * step) / 128)]
    step_size, unit = (constant(op, name, np.array(scale, np.float32)) for name, scale in scales)
    power = op.QLinearSigmoid(codes, step_size, _u8(op, of_one + 17), unit, _u8(op, 0), _domain=MICROSOFT)
    power.dtype, power.shape = ir.DataType.UINT8, codes.shape
    return power


def _u8(op: OpBuilder, number: int) -> ir.Value:
    return constant(op, f"u8.{number}", np.array(number, np.uint8))
