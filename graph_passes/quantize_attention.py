"""Integer attention: both products in u8 x s8, whatever the nodes are called (docs/quantization.md, "Attention").

    query, key -> codes -> MatMulIntegerToFloat -> ... -> Softmax -> codes -+
                                                     value -> codes --------+-> integer product -> rescale

The weights' quantizer decides how their codes are made and what the product is divided by. Shift-and-sum, which makes
more rows of attentive tokens, stands between the codes and the product (`expand_attentive_tokens`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes.attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum, Term, expand
from nextscale.graph_passes.graph_edit import MICROSOFT, constant, integer_matmul, replace, splice
from nextscale.graph_passes.quantize_linear_dynamic import TINY, image_extreme, positive, quantize_images, quantize_rows

AttentionWeights = Literal["log2", "log2-row", "row", "uniform"]
# Powers of two as fine as three bytes hold.
FINEST_EXPONENT = 23


@dataclass(frozen=True)
class Magnitudes:
    """The largest |query|, |key| and |value| that calibration saw."""

    query: float
    key: float
    value: float


def quantize_attention(
    model: ir.Model,
    weights: AttentionWeights,
    bits: int,
    rows: int = 1,
    magnitudes: Mapping[str, Magnitudes] | None = None,
    shift_and_sum: ShiftAndSum | None = None,
    stage_input: str | None = None,
) -> ir.Model:
    """A copy of `model` whose attention is integer.

    Args:
        model: any graph with the pattern MatMul - Softmax - MatMul on [R, H, l, d].
        weights: the quantizer of the attention weights.
        bits: of all four operands, 2 to 8.
        rows: how many rows of the batch are one image: rows r, r + R / rows, ...
        magnitudes: static ranges by the name of the second MatMul; None is dynamic, for each image.
        shift_and_sum: how attentive tokens are expanded; None leaves V to its quantizer.
        stage_input: the graph input (int64 []) that chooses shift-and-sum's places; None where there is one stage.
    Raises:
        ValueError: the graph has no attention, `magnitudes` lacks one, no input is `stage_input`, there are places for
            several stages without one, or the attentive tokens of a subgraph are to be counted.
    """
    model = model.clone()
    model.opset_imports.setdefault(MICROSOFT, 1)
    patterns = attention_patterns(model.graph)
    if not patterns:
        raise ValueError("no MatMul - Softmax - MatMul in the graph")
    stage = next((value for value in model.graph.inputs if value.name == stage_input), None)
    if stage is None and stage_input is not None:
        raise ValueError(f"the graph has no input {stage_input!r}")
    if stage is None and shift_and_sum is not None and len(shift_and_sum.places) != 1:
        raise ValueError(f"places for {len(shift_and_sum.places)} stages, but no input tells the stage")
    for pattern in patterns:
        if shift_and_sum is not None and shift_and_sum.count_overflow and pattern.graph is not model.graph:
            raise ValueError(f"{pattern.name} is in a subgraph; attentive tokens are counted in the main graph only")
        if magnitudes is not None and pattern.name not in magnitudes:
            raise ValueError(f"no magnitudes for the attention {pattern.name!r}")
        known = None if magnitudes is None else magnitudes[pattern.name]
        _quantize_scores(pattern, bits, rows, known)
        overflow = _quantize_mix(pattern, weights, bits, rows, known, shift_and_sum, stage)
        if overflow is not None and shift_and_sum is not None and shift_and_sum.count_overflow:
            overflow.name, overflow.dtype, overflow.shape = overflow_name(pattern.name), ir.DataType.INT64, ir.Shape([])
            model.graph.outputs.append(overflow)
    return model


def overflow_name(mix: str) -> str:
    """The output that counts the attentive tokens without a place in the attention whose second MatMul is `mix`."""
    return f"overflow.{mix}"


def _quantize_scores(pattern: AttentionPattern, bits: int, rows: int, known: Magnitudes | None) -> None:
    """query key with both as codes of one symmetric range each."""

    def body(op: OpBuilder, query: ir.Value, key: ir.Value) -> Sequence[ir.Value]:
        middle = 2 ** (bits - 1)
        q_scale = symmetric_scale(op, "query", query, bits, rows, None if known is None else known.query)
        k_scale = symmetric_scale(op, "key", key, bits, rows, None if known is None else known.key)
        zero_point = constant(op, "middle", np.array(middle, np.uint8))
        codes = quantize_images(op, query, q_scale, zero_point, 0, 2**bits - 1)
        keys = signed_codes(op, key, k_scale, bits)
        one = constant(op, "one", np.array(1, np.float32))
        scale = op.Mul(q_scale, k_scale)
        return [integer_matmul(op, codes, keys, scale, one, zero_point, name=pattern.scores.name)]

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
        v_scale = symmetric_scale(op, "value", v, bits, rows, None if known is None else known.value)
        powers = weights.startswith("log2")
        codes = _powers_of_two(op, logits, a, bits, rows, weights) if powers else _linear(op, a, bits, weights)
        if shift_and_sum is None:
            values = signed_codes(op, v, v_scale, bits)
            ones = op.ConstantOfShape(
                op.Concat(op.Shape(values, end=3), [1], axis=0), value=ir.tensor([1], dtype=ir.DataType.INT8)
            )
            return [_mix(op, codes, [Term(codes.codes, values, ones)], v_scale)]
        terms, overflow = expand(op, a, v, v_scale, codes.codes, codes.finest, bits, shift_and_sum, stage)
        return [_mix(op, codes, terms, v_scale), overflow]

    operands = [pattern.logits, pattern.weights, pattern.value]
    if stage is not None and shift_and_sum is not None:
        operands.append(stage)
    product, *overflow = splice(pattern.graph, f"{pattern.name}/integer", operands, body, before=pattern.mix)
    replace(pattern.mix.outputs[0], product)
    return overflow[0] if overflow else None


def symmetric_scale(op: OpBuilder, name: str, x: ir.Value, bits: int, rows: int, magnitude: float | None) -> ir.Value:
    """2a / M of the known magnitude a, or of each image's: float32 [R, 1, 1, 1], or [] if it is known."""
    steps = 2**bits - 1
    if magnitude is not None:
        scale = np.float32(2 * magnitude / steps)
        return constant(op, f"{name}_scale", scale.reshape(()) if scale >= TINY else np.array(1, np.float32))
    return positive(op, op.Mul(image_extreme(op, op.Abs(x), rows, largest=True), 2 / steps))


def signed_codes(op: OpBuilder, x: ir.Value, scale: ir.Value, bits: int) -> ir.Value:
    """s8 codes of x [R, H, T, d], centred."""
    zero_point = constant(op, "signed_zero_point", np.array(0, np.int8))
    return quantize_images(op, x, scale, zero_point, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class WeightCodes:
    """Codes of attention weights.

    Attributes:
        codes: uint8 [R, H, l, T]; E - x of a weight 2^-x if `finest` is set, linear otherwise.
        finest: E, the largest exponent; a unit of the product then is 2^-E.
        scale: of a unit, broadcasts to [R, H, l, d]; None: the product is divided by the sum of the weights' codes.
    """

    codes: ir.Value
    finest: int | None
    scale: ir.Value | None


def _powers_of_two(
    op: OpBuilder, logits: ir.Value, a: ir.Value, bits: int, rows: int, weights: AttentionWeights
) -> WeightCodes:
    """E - x with x = clip(round(-log2(A / s)), 0, E) (Eq. 4).

    A row's logits are the logarithms of its weights up to a constant, so that no logarithm of A is taken: with p the
    largest weight of the row and z its logit, ln(A / s) = logit - (z + ln(s / p)).
    """
    finest = min(2**bits - 1, FINEST_EXPONENT)
    shift, p = op.ReduceMax(logits, [-1], keepdims=1), op.ReduceMax(a, [-1], keepdims=1)
    s = p
    if weights == "log2":
        s = image_extreme(op, p, rows, largest=True)
        shift = op.Add(shift, op.Log(op.Div(s, p)))
    ln2, zero = constant(op, "ln2", np.array(math.log(2), np.float32)), np.array(finest, np.uint8)
    codes = op.QuantizeLinear(op.Sub(logits, shift), ln2, constant(op, "finest_exponent", zero))
    return WeightCodes(codes, finest, op.Mul(s, 2.0**-finest) if weights == "log2" else None)


def _linear(op: OpBuilder, a: ir.Value, bits: int, weights: AttentionWeights) -> WeightCodes:
    """c = round(M A), or round(M A / rowmax(A))."""
    qmax = 2**bits - 1
    zero_point = constant(op, "weights_zero_point", np.array(0, np.uint8))
    if weights == "uniform":
        scale = constant(op, "weights_scale", np.array(1 / qmax, np.float32))
        return WeightCodes(quantize_images(op, a, scale, zero_point, 0, qmax), None, scale)
    scale = positive(op, op.Mul(op.ReduceMax(a, [-1], keepdims=1), 1 / qmax))
    return WeightCodes(quantize_rows(op, a, scale, zero_point, 0, qmax), None, None)


def _mix(op: OpBuilder, codes: WeightCodes, terms: Sequence[Term], v_scale: ir.Value) -> ir.Value:
    """The integer product of all terms, exact in int64, and its float rescale."""
    normalized = codes.scale is None
    total = None
    for term in terms:
        values = op.Concat(term.values, term.counts, axis=3) if normalized else term.values
        for weights, multiplier in _limbs(op, term.codes, codes.finest):
            part = op.Cast(op.MatMulInteger(weights, values), to=ir.DataType.INT64)
            part = op.Mul(part, term.multiplier * multiplier)
            total = part if total is None else op.Add(total, part)
    total = op.Cast(total, to=ir.DataType.FLOAT)
    if not normalized:
        return op.Mul(total, op.Div(op.Mul(v_scale, codes.scale), float(terms[0].multiplier)))
    width = op.Shape(terms[0].values, start=3)
    product, count = (op.Slice(total, begin, end, [3]) for begin, end in (([0], width), (width, op.Add(width, 1))))
    return op.Mul(op.Div(product, count), v_scale)


def _limbs(op: OpBuilder, codes: ir.Value, finest: int | None) -> list[tuple[ir.Value, int]]:
    """u8 operands and their multipliers: linear codes as they are; 2^c byte by byte.

    Byte i is 2^(c - 8i) where that is 1 to 128. Arithmetic on u8 costs a tenth of a bit operation on wider integers.
    """
    if finest is None:
        return [(codes, 1)]
    # reached[i] is 1 where c is 8i or more, 0 elsewhere.
    reached = [_reached(op, codes, 8 * i) for i in range(1, finest // 8 + 1)]
    within = codes
    for step in reached:
        within = op.Sub(within, op.Mul(step, _u8(op, 8)))
    power = _power(op, within)
    if not reached:
        return [(power, 1)]
    begins, ends = [_u8(op, 1), *reached], [*reached, None]
    windows = [begin if end is None else op.Sub(begin, end) for begin, end in zip(begins, ends, strict=True)]
    return [(op.Mul(power, window), 256**i) for i, window in enumerate(windows)]


def _reached(op: OpBuilder, codes: ir.Value, level: int) -> ir.Value:
    """1 where a code is at least `level`, 0 elsewhere: uint8."""
    below = _u8(op, level - 1)
    return op.Sub(op.Min(op.Max(codes, below), _u8(op, level)), below)


def _power(op: OpBuilder, exponent: ir.Value) -> ir.Value:
    """2^x of x from 0 to 7, uint8.

    A sigmoid of integers is a table of 256 entries, and below zero it is nearly the exponential function: its values at
    (x - 17) ln 2, in units of 2^-17, are less than 2^x by a thousandth at most, and rounded. (Farther below zero they
    would be nearer, but ONNX Runtime cuts its sigmoid off at -18.)
    """
    offset = 17
    scales = [("ln2", math.log(2)), ("power_unit", 2.0**-offset)]
    step, unit = (constant(op, name, np.array(scale, np.float32)) for name, scale in scales)
    power = op.QLinearSigmoid(exponent, step, _u8(op, offset), unit, _u8(op, 0), _domain=MICROSOFT)
    power.dtype, power.shape = ir.DataType.UINT8, exponent.shape
    return power


def _u8(op: OpBuilder, number: int) -> ir.Value:
    return constant(op, f"u8.{number}", np.array(number, np.uint8))
