"""Integer linear layers whose activations' ranges are found at run time, for each image or for each token.

    x -> min, max -> scale, zero point -> QuantizeLinear -> MatMulIntegerToFloat -> y

QuantizeLinear along axis 0 takes a scale for each token, and MatMulIntegerToFloat multiplies its product by it. A zero
point of each image cannot go into the product, which takes one for all: it becomes a term for each image and output
channel, added together with the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._dynamic_ranges import by_row, image_extreme, positive, quantize_images, quantize_tokens
from nextscale.graph_passes._graph_edit import MICROSOFT, constant, integer_matmul, splice
from nextscale.graph_passes.linear_layers import (
    IntegerWeight,
    LinearLayer,
    WeightRounder,
    find_layers,
    insert_integer_weight,
    layer_bias,
    sharing,
    substitute,
)


def quantize_linear_by_image(
    model: ir.Model, rows: Mapping[str, int], bits: int, rounder: WeightRounder, packed: bool = False
) -> ir.Model:
    """A copy of `model` whose linear layers named in `rows` have one min-max range per image (Eq. 1 to 3).

    Args:
        model: a graph whose layers see [R, ..., K]; of two axes [R, K], each row is one.
        rows: for each layer the number of rows an image has in its input: rows r, r + R / rows, ... are one image.
        bits: of the activations, 2 to 8.
        rounder: makes the integer weights.
        packed: store the weights, of at most 4 bits, as UINT4.
    Raises:
        ValueError: a name in `rows` is not a linear layer of the model, or its input has one axis or an unknown number.
    """
    model = model.clone()
    model.opset_imports.setdefault(MICROSOFT, 1)
    for layers in sharing(find_layers(model.graph, set(rows))):
        first = layers[0]
        body = partial(_quantize_by_image, rows=rows[first.name], bits=bits, rank=_rank(first))
        codes, scale, offset = splice(
            first.graph, f"{first.name}/quantize", [first.activation], body, before=first.node
        )
        for layer in layers:
            weight = insert_integer_weight(model.graph, layer, rounder, packed)
            bias = layer_bias(layer)
            multiply = partial(_multiply_by_image, weight=weight, middle=2 ** (bits - 1), name=layer.name)
            operands = [codes, scale, offset, weight.codes, weight.scale, *([bias] if bias is not None else [])]
            substitute(model, layer, operands, multiply, with_bias=bias is not None)
    return model


def quantize_linear_by_token(
    model: ir.Model, zero_points: Mapping[str, int], bits: int, rounder: WeightRounder, packed: bool = False
) -> ir.Model:
    """A copy of `model` whose linear layers named in `zero_points` have a range for each token.

    Args:
        model: a graph whose layers see [..., K], of two axes or more.
        zero_points: for each layer the zero point of its codes, from 1 to 2^bits - 2.
        bits: of the activations, 2 to 8.
        rounder: makes the integer weights.
        packed: store the weights, of at most 4 bits, as UINT4.
    Raises:
        ValueError: a name in `zero_points` is not a linear layer of the model, or its input has one axis or an unknown
            number.
    """
    model = model.clone()
    model.opset_imports.setdefault(MICROSOFT, 1)
    for layers in sharing(find_layers(model.graph, set(zero_points))):
        first = layers[0]
        zero_point = zero_points[first.name]
        body = partial(quantize_tokens, zero_point=zero_point, bits=bits, rank=_rank(first))
        codes, scale = splice(first.graph, f"{first.name}/quantize", [first.activation], body, before=first.node)
        for layer in layers:
            weight = insert_integer_weight(model.graph, layer, rounder, packed)
            multiply = partial(_multiply_by_token, zero_point=zero_point, name=layer.name)
            substitute(model, layer, [codes, scale, weight.codes, weight.scale], multiply, with_bias=False)
    return model


def _rank(layer: LinearLayer) -> int:
    shape = layer.activation.shape
    if shape is None or len(shape) < 2:
        found = "an unknown number of axes" if shape is None else "one axis"
        raise ValueError(f"the input of {layer.name!r} has {found}; expected 2 or more")
    return len(shape)


def _quantize_by_image(op: OpBuilder, x: ir.Value, rows: int, bits: int, rank: int) -> Sequence[ir.Value]:
    """Codes of x [R, ..., K], their scale [R, 1, ...], and it times what the zero point is above 2^(bits-1)."""
    qmax, middle = 2**bits - 1, constant(op, "middle", np.array(2 ** (bits - 1), np.uint8))
    # A stage may have no tokens of a kind: then zero is all there is.
    high, below = (
        op.Max(extreme, 0.0)
        for extreme in (image_extreme(op, x, rows, largest=True), op.Neg(image_extreme(op, x, rows, largest=False)))
    )
    scale = positive(op, op.Div(op.Add(high, below), float(qmax)))
    zero_point = op.QuantizeLinear(below, scale, axis=0)
    codes = quantize_images(op, x, scale, zero_point, 0, qmax)
    scale = by_row(op, scale, rank)
    one = constant(op, "one", np.array(1, np.float32))
    return codes, scale, op.Mul(scale, by_row(op, op.DequantizeLinear(zero_point, one, middle), rank))


def _multiply_by_image(
    op: OpBuilder,
    codes: ir.Value,
    scale: ir.Value,
    offset: ir.Value,
    weight_codes: ir.Value,
    weight_scale: ir.Value,
    bias: ir.Value | None = None,
    *,
    weight: IntegerWeight,
    middle: int,
    name: str,
) -> Sequence[ir.Value]:
    """Codes are taken from 2^(bits-1); `offset`, scale times what the zero point is off, goes into an image's bias."""
    product = integer_matmul(
        op, codes, weight_codes, scale, weight_scale, constant(op, "middle", np.array(middle, np.uint8)), name
    )
    column = op.Mul(constant(op, "negative_weight_sums", -weight.sums.astype(np.float32)), weight_scale)
    shift = op.Mul(offset, column)
    return [op.Add(product, shift if bias is None else op.Add(shift, bias))]


def _multiply_by_token(
    op: OpBuilder,
    codes: ir.Value,
    scale: ir.Value,
    weight_codes: ir.Value,
    weight_scale: ir.Value,
    *,
    zero_point: int,
    name: str,
) -> Sequence[ir.Value]:
    at = constant(op, "zero_point", np.array(zero_point, np.uint8))
    return [integer_matmul(op, codes, weight_codes, scale, weight_scale, at, name)]
