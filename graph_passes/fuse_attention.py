"""Float attention with its normalization, its caches and the codes of its result as one operator of nextscale-ops.

The attention of `_cosine_attention` (-> Quantize)   becomes   Attention
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._attention_patterns import Refusal, attention_patterns
from nextscale.graph_passes._cosine_attention import CosineAttention, cosine_attention
from nextscale.graph_passes._fused_nodes import (
    CACHES,
    CODE_OUTPUTS,
    OPERATORS,
    OPERATORS_VERSION,
    attribute_values,
    insert_operator,
    only_quantize,
    take_over,
    take_over_codes,
)


def fuse_attention(model: ir.Model) -> ir.Model:
    """A copy of `model` whose cosine attentions with caches are single nodes; `unfused_attentions` names others."""
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    for pattern in attention_patterns(model.graph):
        found = cosine_attention(pattern)
        if not isinstance(found, Refusal):
            _fuse(model.graph, found)
    RemoveUnusedNodesPass()(model)
    return model


def unfused_attentions(model: ir.Model) -> list[Refusal]:
    """The attentions of a graph that no operator serves, and why."""
    found = (cosine_attention(pattern) for pattern in attention_patterns(model.graph))
    return [item for item in found if isinstance(item, Refusal)]


def _fuse(graph: ir.Graph, found: CosineAttention) -> None:
    pattern, inputs = found.pattern, found.operands(graph)
    (y,) = found.result.outputs
    quantize = only_quantize(y)
    name = f"{pattern.name}/fused"
    if quantize is not None and quantize.attributes["ranges"].as_string() == "pair":
        made = insert_operator(
            graph,
            "Attention",
            [*inputs, *quantize.inputs[1:]],
            ["", *CODE_OUTPUTS["pair"], *CACHES],
            name,
            attribute_values(quantize) | {"heads": found.heads},
            before=found.result,
        )
        take_over_codes(made, quantize)
    else:
        outputs = ["y", "", "", *CACHES]
        made = insert_operator(graph, "Attention", inputs, outputs, name, {"heads": found.heads}, before=found.result)
        take_over(made["y"], y)
    take_over(made["present_key"], pattern.key)
    take_over(made["present_value"], pattern.value)
