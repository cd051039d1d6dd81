"""Integer linear layers for guided rows: the row without the class, and the difference that the class makes.

    x = [cond; uncond] -> u = uncond, d = cond - uncond
    u -> QuantizeLinear -> MatMulIntegerToFloat (with the bias) -> y_u
    d -> QuantizeLinear -> MatMulIntegerToFloat                 -> y_d
    y = [y_u + y_d; y_u]

Guidance extrapolates, (1 + t) cond - t uncond, so independent errors of the two rows add up to (1 + t)^2 + t^2 times
one's variance: 41 times at t = 4. Here u's error is the same in both rows and cancels to 1; what is amplified is the
error of d, which is a few percent of u and has a scale of its own (docs/decisions/0006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_edit import MICROSOFT, constant, integer_matmul, splice
from nextscale.graph_passes._stage_tables import stage_tables
from nextscale.graph_passes.linear_layers import (
    LinearLayer,
    WeightRounder,
    find_layers,
    insert_integer_weight,
    layer_bias,
    sharing,
    substitute,
)
from nextscale.graph_passes.qparams import ActivationQParams, Range


@dataclass(frozen=True)
class PairRanges:
    """Ranges [S] of a layer's input without the class, and of the difference that the class makes."""

    uncond: Range
    difference: Range

    def merge(self, other: PairRanges) -> PairRanges:
        return PairRanges(self.uncond.merge(other.uncond), self.difference.merge(other.difference))


def quantize_linear_pairs(
    model: ir.Model,
    ranges: Mapping[str, PairRanges],
    stage_input: str,
    bits: int,
    rounder: WeightRounder,
    packed: bool = False,
) -> ir.Model:
    """A copy of `model` whose linear layers named in `ranges` are integer.

    Args:
        model: a stage graph whose layers see [2B, l, K], the rows with the class first.
        ranges: for each layer's name.
        stage_input: the graph input (int64 []) that tells the stage.
        bits: of the activations, 2 to 8.
        rounder: makes the integer weights.
        packed: store the weights, of at most 4 bits, as UINT4.
    Raises:
        ValueError: a name in `ranges` is not a linear layer of the model.
    """
    model = model.clone()
    groups = sharing(find_layers(model.graph, set(ranges)))
    if not groups:
        return model
    model.opset_imports.setdefault(MICROSOFT, 1)
    parts = {}
    for layers in groups:
        merged = ranges[layers[0].name]
        for layer in layers[1:]:
            merged = merged.merge(ranges[layer.name])
        for part, found in (("uncond", merged.uncond), ("difference", merged.difference)):
            parts[f"{layers[0].name}.{part}"] = ActivationQParams.from_range(found, bits)
    tables = stage_tables(model.graph, parts, stage_input, "pair")
    for layers in groups:
        first = layers[0]
        scales = [value for part in ("uncond", "difference") for value in tables[f"{first.name}.{part}"]]
        body = partial(_quantize, qmax=2**bits - 1)
        codes = splice(first.graph, f"{first.name}/quantize", [first.activation, *scales], body, before=first.node)
        for layer in layers:
            _multiply(model, layer, [*codes, *scales], rounder, packed)
    return model


def _quantize(
    op: OpBuilder,
    x: ir.Value,
    u_scale: ir.Value,
    u_zero_point: ir.Value,
    d_scale: ir.Value,
    d_zero_point: ir.Value,
    qmax: int,
) -> Sequence[ir.Value]:
    """u8 codes of u and d, [B, l, K] each."""
    cond, uncond = op.Split(x, axis=0, num_outputs=2, _outputs=2)
    codes = [
        op.QuantizeLinear(uncond, u_scale, u_zero_point),
        op.QuantizeLinear(op.Sub(cond, uncond), d_scale, d_zero_point),
    ]
    if qmax == 255:
        return codes
    # ONNX Runtime's Min has no kernel for uint8 before 1.24.
    return [op.Clip(part, None, constant(op, "qmax", np.array(qmax, np.uint8))) for part in codes]


def _multiply(
    model: ir.Model, layer: LinearLayer, operands: Sequence[ir.Value], rounder: WeightRounder, packed: bool
) -> None:
    weight, bias = insert_integer_weight(model.graph, layer, rounder, packed), layer_bias(layer)

    def body(
        op: OpBuilder,
        u: ir.Value,
        d: ir.Value,
        u_scale: ir.Value,
        u_zero_point: ir.Value,
        d_scale: ir.Value,
        d_zero_point: ir.Value,
        codes: ir.Value,
        scale: ir.Value,
        bias: ir.Value | None = None,
    ) -> Sequence[ir.Value]:
        y_u = integer_matmul(op, u, codes, u_scale, scale, u_zero_point, f"{layer.name}.uncond", bias)
        y_d = integer_matmul(op, d, codes, d_scale, scale, d_zero_point, f"{layer.name}.difference")
        return [op.Concat(op.Add(y_u, y_d), y_u, axis=0)]

    biases = [] if bias is None else [bias]
    substitute(model, layer, [*operands, weight.codes, weight.scale, *biases], body, with_bias=bias is not None)
