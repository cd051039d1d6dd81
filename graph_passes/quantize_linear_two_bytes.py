"""Integer linear layers that read two bytes of each number, with a range for each token found at run time.

For inputs with a few values so large that one byte would leave nothing of the others. The second byte has what the
first leaves over, in steps that are FINE_STEPS times as small:

    x ~ scale (code - 128) + scale / 128 (fine - 128)        |fine - 128| <= 64
    codes and fine codes as rows of one product -> MatMulIntegerToFloat -> y = y_codes + y_fine

One product, so that ONNX Runtime packs the weight once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._dynamic_ranges import quantize_rows, quantize_tokens
from nextscale.graph_passes._graph_edit import MICROSOFT, constant, integer_matmul, splice
from nextscale.graph_passes.linear_layers import WeightRounder, find_layers, insert_integer_weight, sharing, substitute
from nextscale.graph_passes.qparams import FINE_STEPS

BITS, MIDDLE = 8, 128


def quantize_linear_two_bytes(
    model: ir.Model, names: Collection[str], rounder: WeightRounder, packed: bool = False
) -> ir.Model:
    """A copy of `model` whose linear layers with these names read two bytes of each number.

    Args:
        model: a graph whose layers see [R, l, K].
        names: of the layers.
        rounder: makes the integer weights.
        packed: store the weights, of at most 4 bits, as UINT4.
    Raises:
        ValueError: a name is not a linear layer of the model.
    """
    model = model.clone()
    model.opset_imports.setdefault(MICROSOFT, 1)
    for layers in sharing(find_layers(model.graph, set(names))):
        first = layers[0]
        codes, scale = splice(first.graph, f"{first.name}/quantize", [first.activation], _quantize, before=first.node)
        for layer in layers:
            weight = insert_integer_weight(model.graph, layer, rounder, packed)
            multiply = partial(_multiply, name=layer.name)
            substitute(model, layer, [codes, scale, weight.codes, weight.scale], multiply, with_bias=False)
    return model


def _quantize(op: OpBuilder, x: ir.Value) -> Sequence[ir.Value]:
    """Codes [2R, l, K] and scale [2R, l, 1]: R rows of codes, then R of fine codes."""
    codes, scale = quantize_tokens(op, x, MIDDLE, BITS)
    # No DequantizeLinear: behind QuantizeLinear an optimizer may take the pair for nothing.
    left = op.Sub(x, op.Mul(op.Sub(op.Cast(codes, to=ir.DataType.FLOAT), float(MIDDLE)), scale))
    left.dtype, left.shape = x.dtype, x.shape
    fine_scale = op.Div(scale, float(FINE_STEPS))
    middle = constant(op, "zero_point", np.array(MIDDLE, np.uint8))
    fine = quantize_rows(op, left, fine_scale, middle, 0, 2**BITS - 1)
    return op.Concat(codes, fine, axis=0), op.Concat(scale, fine_scale, axis=0)


def _multiply(
    op: OpBuilder, codes: ir.Value, scale: ir.Value, weight_codes: ir.Value, weight_scale: ir.Value, *, name: str
) -> Sequence[ir.Value]:
    middle = constant(op, "zero_point", np.array(MIDDLE, np.uint8))
    product = integer_matmul(op, codes, weight_codes, scale, weight_scale, middle, name)
    of_codes, of_fine = op.Split(product, axis=0, num_outputs=2, _outputs=["of_codes", "of_fine"])
    return [op.Add(of_codes, of_fine)]
