"""What of a normalized model can become integer, and what cannot, each with its reason: every product is listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from nextscale.foreign._normal_transposed import why_transposed
from nextscale.graph_passes._attention_patterns import AttentionPattern, Refusal, attention_patterns, refusals
from nextscale.graph_passes._graph_edit import MICROSOFT, input_of, is_operator
from nextscale.graph_passes.convolutions import ConvolutionLayer, convolutions
from nextscale.graph_passes.linear_layers import linear_layers

Kind = Literal["linear layer", "attention", "convolution", "product", "recurrent layer"]

# Attention as one operator, which no pattern looks into.
WHOLE_ATTENTIONS = {
    "": ("Attention",),
    MICROSOFT: (
        "Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention", "QAttention",
        "DecoderMaskedSelfAttention", "SparseAttention",
    ),
}  # fmt: skip
# Of a convolution, multiplications for each number that it reads. On PP-OCRv4 depthwise ones take longer in integers.
LEAST_WORK = 32
# Steps of numbers far beyond have no room in float32.
LARGEST = 1e30
RECURRENT = ("LSTM", "GRU", "RNN")
INTEGER = ("MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger")


@dataclass(frozen=True)
class Found:
    """An operator that multiplies.

    Attributes:
        name: of its node; of an attention, of its second MatMul, or of its Softmax where its form is refused.
        kind: what it is.
        refused: why it stays as it is; None: it can become integer.
        shape: [out, in] of a linear layer.
    """

    name: str
    kind: Kind
    refused: str | None = None
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Survey:
    """All that multiplies, in the graph's order."""

    found: tuple[Found, ...]

    def taken(self, kind: Kind) -> list[Found]:
        """Those of a kind that can become integer."""
        return [item for item in self.found if item.kind == kind and item.refused is None]

    def names(self, kind: Kind) -> set[str]:
        """Theirs."""
        return {item.name for item in self.taken(kind)}

    def without(self, names: dict[str, str]) -> Survey:
        """With further refusals, the reasons by name."""
        return Survey(
            tuple(
                replace(item, refused=names[item.name]) if item.refused is None and item.name in names else item
                for item in self.found
            )
        )


def survey(model: ir.Model) -> Survey:
    """Look at every operator of a normalized model and its subgraphs."""
    patterns = attention_patterns(model.graph)
    by_node: dict[ir.Node, AttentionPattern] = {}
    for pattern in patterns:
        by_node |= {pattern.scores: pattern, pattern.mix: pattern}
    weights = {layer.node for layer in linear_layers(model.graph)}
    kernels = {layer.node: layer for layer in convolutions(model.graph)}
    refused = {refusal.node: refusal for refusal in refusals(model.graph) if _is_attention(refusal)}
    told = {product for refusal in refused.values() for product in refusal.products}
    found = list[Found]()
    for node, graph in _nodes(model.graph):
        inside = None if graph is model.graph else "in a subgraph, which calibration does not see"
        name = str(node.name)
        if is_operator(node, "Softmax"):
            if node in refused:
                found.append(Found(name, "attention", refused[node].reason))
        elif node in by_node:
            if node is by_node[node].mix:
                of_floats = by_node[node].value.dtype in (None, ir.DataType.FLOAT)
                found.append(Found(name, "attention", inside or (None if of_floats else "it is not of float32")))
        elif node in weights:
            found.append(_linear(node, inside))
        elif node in kernels:
            found.append(_convolution(kernels[node]))
        else:
            item = _other(node, name, inside, node in told)
            if item is not None:
                found.append(item)
    return Survey(tuple(found))


def _linear(node: ir.Node, inside: str | None) -> Found:
    activation, weight = input_of(node, 0), input_of(node, 1)
    assert weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    shape, reason = (int(columns), int(rows)), inside
    if weight.const_value.dtype != ir.DataType.FLOAT:
        reason = reason or f"its weight is {weight.const_value.dtype.name.lower()}, not float32"
    elif activation.shape is None:
        reason = reason or "its input is of unknown rank"
    elif len(activation.shape) < 2:
        reason = reason or "its input is a vector"
    elif activation.const_value is not None:
        reason = reason or "its input is a constant, too"
    elif weight.is_graph_output():
        reason = reason or "its weight is an output of the model"
    elif not rows or not columns:
        reason = reason or "its weight has no numbers"
    elif not _is_sane(weight):
        reason = reason or f"its weight is not finite, or beyond {LARGEST:g}"
    return Found(str(node.name), "linear layer", reason, shape)


def _convolution(layer: ConvolutionLayer) -> Found:
    constants = [value for value in (layer.weight, layer.bias) if value is not None]
    others = [value.dtype for value in constants if value.dtype != ir.DataType.FLOAT]
    reason = None
    if others:
        reason = f"its weight or bias is {'unknown' if others[0] is None else others[0].name.lower()}, not float32"
    elif any(value.is_graph_output() for value in constants):
        reason = "its weight is an output of the model"
    elif not all(_is_sane(value) for value in constants):
        reason = f"its weight or bias is not finite, or beyond {LARGEST:g}"
    elif layer.activation.const_value is not None:
        reason = "its input is a constant, too"
    elif layer.result.is_graph_output():
        reason = "its result is an output of the model, which 8 bits would be too few for"
    elif layer.reader() is None:
        reason = "its result is read in a subgraph alone, which calibration does not see"
    elif layer.work < LEAST_WORK:
        reason = f"{layer.work:.3g} multiplications for each number that it reads: less work than to round them"
    elif _embeds_patches(layer):
        reason = "it embeds patches: little work, whose error would stay in all that follows"
    return Found(layer.name, "convolution", reason)


def _embeds_patches(layer: ConvolutionLayer) -> bool:
    """Whether it reads patches that lie side by side, as a vision transformer's first layer does."""
    assert layer.weight.const_value is not None
    kernel = [int(size) for size in layer.weight.const_value.shape.numpy()[2:]]
    strides = layer.node.attributes.get_ints("strides", [1] * len(kernel))
    return max(kernel, default=1) > 1 and [*strides] == kernel


def _is_sane(weight: ir.Value) -> bool:
    assert weight.const_value is not None
    return bool((np.abs(weight.const_value.numpy()) < LARGEST).all())


def _other(node: ir.Node, name: str, inside: str | None, told: bool) -> Found | None:
    """What else multiplies; None also of a product that a refused attention tells of."""
    if node.op_type in WHOLE_ATTENTIONS.get(node.domain, ()):
        return Found(
            name, "attention", f"{node.domain or 'ONNX'} {node.op_type} is one operator; export it as products"
        )
    if node.domain not in ("", MICROSOFT):
        return None
    if node.op_type == "Conv":
        return Found(name, "convolution", inside or _no_weight(input_of(node, 1)))
    if node.op_type == "ConvTranspose":
        reason = why_transposed(node) or "the sizes of its input were unknown"
        return Found(name, "convolution", inside or f"ConvTranspose that became no Conv: {reason}")
    if node.op_type == "DeformConv":
        return Found(name, "convolution", "DeformConv has no integer kernel")
    if node.op_type in RECURRENT:
        return Found(name, "recurrent layer", f"{node.op_type} stays as it is")
    if node.op_type in INTEGER or node.op_type == "MatMulNBits":
        return Found(name, "product", f"{node.op_type} is quantized already")
    if node.op_type in ("Gemm", "FusedMatMul", "FusedGemm", "Einsum"):
        return Found(name, "product", f"{node.op_type} that is no MatMul with a constant weight")
    if node.op_type != "MatMul":
        return None
    left, right = (ir.convenience.get_const_tensor(input_of(node, i)) for i in (0, 1))
    maker = input_of(node, 1).producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        return Found(name, "product", "it is quantized already")
    if right is not None:
        return Found(name, "linear layer", f"its weight has {len(right.shape)} axes; expected 2")
    if left is not None:
        return Found(name, "linear layer", "its weight is on the left")
    return None if told else Found(name, "product", "both operands are activations, and it is no attention")


def _no_weight(weight: ir.Value) -> str:
    maker = weight.producer()
    is_quantized = maker is not None and maker.op_type == "DequantizeLinear"
    return "it is quantized already" if is_quantized else "its weight or bias is computed"


def _is_attention(refusal: Refusal) -> bool:
    """Whether products are around it, or could be: of a classifier's softmax nobody asks."""
    output = refusal.node.outputs[0]
    return bool(refusal.products) or (not output.is_graph_output() and any(True for _ in output.uses()))


def _nodes(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    for node in graph:
        yield node, graph
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _nodes(inner)
