"""Integer attention with its normalization and its caches as one operator of nextscale-ops.

The attention of `_cosine_attention`, in float   becomes   IntegerAttention

with the integers that `quantize_attention` makes of it in stock operators; so this pass stands in its place, and leaves
to it what no operator serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._attention_patterns import Refusal, attention_patterns
from nextscale.graph_passes._cosine_attention import CosineAttention, cosine_attention
from nextscale.graph_passes._fused_nodes import (
    CACHES,
    OPERATORS,
    OPERATORS_VERSION,
    Attributes,
    fused_nodes,
    insert_operator,
    take_over,
)
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.quantize_attention import Magnitudes, overflow_name
from nextscale.graph_passes.recipe import AttentionWeights

_SUFFIX = "/fused"


def fuse_integer_attention(
    model: ir.Model,
    weights: AttentionWeights,
    bits: int,
    rows: int,
    magnitudes: Mapping[str, Magnitudes] | None,
    shift_and_sum: ShiftAndSum | None,
    stage_input: str,
    names: Collection[str],
) -> ir.Model:
    """A copy of `model` whose cosine attentions with caches, of those named, are single nodes.

    Args:
        model, weights, bits, rows, magnitudes, shift_and_sum, stage_input, names: as in `quantize_attention`.
    """
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    stage = next(value for value in model.graph.inputs if value.name == stage_input)
    for pattern in attention_patterns(model.graph):
        found = cosine_attention(pattern)
        if pattern.name not in names or isinstance(found, Refusal):
            continue
        attributes: Attributes = {"heads": found.heads, "bits": bits, "image_rows": rows, "weights": weights}
        if magnitudes is not None:
            known = magnitudes[pattern.name]
            attributes["magnitudes"] = [known.query, known.key, known.value]
        if shift_and_sum is not None:
            attributes |= {"theta": shift_and_sum.theta, "places": list(shift_and_sum.places)}
        _fuse(model.graph, found, attributes, shift_and_sum, stage)
    RemoveUnusedNodesPass()(model)
    return model


def fused_attentions(model: ir.Model) -> set[str]:
    """The names of those that are single nodes, by their second MatMul."""
    return {str(node.name).removesuffix(_SUFFIX) for node in fused_nodes(model.graph, "IntegerAttention")}


def _fuse(
    graph: ir.Graph,
    found: CosineAttention,
    attributes: Attributes,
    shift_and_sum: ShiftAndSum | None,
    stage: ir.Value,
) -> None:
    pattern, inputs, outputs = found.pattern, found.operands(graph), ["y", *CACHES]
    counts = shift_and_sum is not None and shift_and_sum.count_overflow
    made = insert_operator(
        graph,
        "IntegerAttention",
        inputs if shift_and_sum is None else [*inputs, stage],
        [*outputs, "overflow"] if counts else outputs,
        f"{pattern.name}{_SUFFIX}",
        attributes,
        before=found.result,
    )
    take_over(made["y"], found.result.outputs[0])
    take_over(made["present_key"], pattern.key)
    take_over(made["present_value"], pattern.value)
    if counts:
        overflow = made["overflow"]
        overflow.name, overflow.dtype, overflow.shape = overflow_name(pattern.name), ir.DataType.INT64, ir.Shape([])
        graph.outputs.append(overflow)
