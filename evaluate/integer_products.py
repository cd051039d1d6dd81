"""Find the u8 x s8 products of an integer graph, and give their operands as graph outputs.

Four forms (`quantize_linear`, its dynamic and pairs forms, `quantize_attention`, `channels_last`):

    1. MatMul of two DequantizeLinear: a linear layer with static ranges.
    2. MatMulIntegerToFloat: any other linear layer; with an s8 operand that is no weight, attention's scores.
    3. MatMulInteger: attention's weights times the values.
    4. QLinearConv: a convolution, channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.graph_passes._graph_edit import MICROSOFT, is_operator
from nextscale.graph_passes.linear_layers import CODES_SUFFIX

Kind = Literal["linear", "scores", "mix", "convolution"]
PREFIX = "operand."


@dataclass(frozen=True)
class IntegerProduct:
    """u8 codes times s8 codes.

    Attributes:
        name: of the weight, without its suffix, or of the attention's product in the float graph.
        kind: "linear", attention's "scores" or "mix", or "convolution".
        node: the operator.
        codes: uint8 [..., M, K], or [B, H, W, in] of a convolution.
        zero_point: of the codes, uint8 []; None is zero.
        weight: int8 [K, N], [..., K, N] in attention, or [out, in, kh, kw].
        weight_scale: float32 [N]; None where one scale is for all.
        is_observable: whether the operands can be outputs of the graph; those of a subgraph cannot.
    """

    name: str
    kind: Kind
    node: ir.Node
    codes: ir.Value
    zero_point: ir.Value | None
    weight: ir.Value
    weight_scale: ir.Value | None
    is_observable: bool

    def operands(self) -> dict[ir.Value, ir.DataType]:
        """What only a run of the graph tells."""
        u8, s8 = ir.DataType.UINT8, ir.DataType.INT8
        found = ((self.codes, u8), (self.zero_point, u8), (self.weight, s8))
        return {value: its for value, its in found if value is not None and value.const_value is None}

    def pads(self) -> tuple[int, int, int, int]:
        """Of a convolution: pixels above, left, below and right."""
        top, left, bottom, right = self.node.attributes["pads"].as_ints()
        return top, left, bottom, right


def integer_products(model: ir.Model) -> list[IntegerProduct]:
    """All u8 x s8 products, in order; those of packed weights, whose 4 bits never saturate, are left out."""
    graph = model.graph
    return [
        found
        for node in ir.traversal.RecursiveGraphIterator(graph)
        if (found := _product(node, is_observable=node.graph is graph)) is not None
    ]


def output_name(operand: ir.Value) -> str:
    """The output that carries an operand."""
    return f"{PREFIX}{operand.name}"


def expose_operands(model: ir.Model) -> ir.Model:
    """A copy of `model` that also gives the operands which only a run tells. Applied again it changes nothing."""
    model = model.clone()
    graph = model.graph
    present = {output.name for output in graph.outputs}
    for product in integer_products(model):
        for value, operand_type in product.operands().items():
            if product.is_observable and output_name(value) not in present:
                node = ir.node("Identity", [value], name=f"observe/{value.name}")
                graph.append(node)
                (output,) = node.outputs
                output.name, output.type = output_name(value), ir.TensorType(operand_type)
                rank = 0 if value is product.zero_point else 3 if product.kind == "linear" else 4
                output.shape = value.shape or ir.Shape([None] * rank)
                present.add(output.name)
                graph.outputs.append(output)
    return model


def reduction_rows(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """A constant weight [K, N] or [out, in, kh, kw] as [N, K], K in the order in which the kernels reduce.

    ONNX Runtime's kernels (MLAS) take the reduction of a matrix product four at a time from its beginning, and that of
    a channels-last convolution by position and then by channel, with or without an im2col.
    """
    return weight.T if weight.ndim == 2 else np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def _product(node: ir.Node, is_observable: bool) -> IntegerProduct | None:
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * 9]
    kind: Kind
    if is_operator(node, "MatMul"):
        sources = [value.producer() if value is not None else None for value in inputs[:2]]
        if any(source is None or not is_operator(source, "DequantizeLinear") for source in sources):
            return None
        (codes, _, zero_point), (weight, scale, *_) = (source.inputs for source in sources if source is not None)
        kind = "linear"
    elif is_operator(node, "MatMulIntegerToFloat", MICROSOFT):
        codes, weight, _, scale, zero_point = inputs[:5]
        kind = "linear" if _is_weight(weight) else "scores"
    elif is_operator(node, "MatMulInteger"):
        codes, weight, zero_point, scale = *inputs[:3], None
        kind = "mix"
    elif is_operator(node, "QLinearConv", MICROSOFT):
        codes, _, zero_point, weight, scale = inputs[:5]
        kind = "convolution"
    else:
        return None
    assert codes is not None
    assert weight is not None
    if _is_weight(weight):
        if weight.const_value is None:
            return None
        name = str(weight.name).removesuffix(CODES_SUFFIX)
    else:
        # "{mix}/scores/{scores}" and "{mix}/integer/..." are pieces of `quantize_attention`.
        first, _, last = str(node.name).partition("/scores/")
        name, scale = last or first.partition("/integer/")[0], None
    return IntegerProduct(name, kind, node, codes, zero_point, weight, scale, is_observable)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and str(value.name).endswith(CODES_SUFFIX)
