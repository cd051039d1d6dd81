"""Float attention with its normalization, its caches and the codes of its result as one operator of nextscale-ops.

query -> Reshape -> LpNormalization -> Transpose -> Mul scale ------------+
key   -> Reshape -> LpNormalization -> Transpose -> Concat past_key ------+-> MatMul -> Softmax -> MatMul -> y
value -> Reshape -> Transpose -> Concat past_value ------------------------------------------------+
y -> Transpose -> Reshape (-> Quantize)                  all of it becomes   Attention
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns
from nextscale.graph_passes._fused_nodes import (
    CODE_OUTPUTS,
    OPERATORS,
    OPERATORS_VERSION,
    fused_nodes,
    insert_operator,
    only_use,
    producer_of,
    take_over,
)
from nextscale.graph_passes._graph_edit import add_initializer, input_of


def fuse_attention(model: ir.Model) -> ir.Model:
    """A copy of `model` whose cosine attentions with caches are single nodes; others stay as they are."""
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    for pattern in attention_patterns(model.graph):
        found = _match(pattern)
        if found is not None:
            _fuse(model.graph, pattern, found)
    RemoveUnusedNodesPass()(model)
    return model


@dataclass(frozen=True)
class _Attention:
    """What makes an attention's operands; `result` is the Reshape after it."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    scale: ir.Value
    heads: int
    result: ir.Node


def _match(pattern: AttentionPattern) -> _Attention | None:
    """The attention of cosine similarity around the pattern; None where it has another form."""
    scaled = producer_of(pattern.query, "Mul")
    keys, values = producer_of(pattern.key, "Concat"), producer_of(pattern.value, "Concat")
    after = only_use(pattern.mix.outputs[0])
    if scaled is None or keys is None or values is None or after is None:
        return None
    scale = scaled.inputs[1]
    result = only_use(after[0].outputs[0])
    query = _by_head(scaled.inputs[0], [0, 2, 1, 3], normalized=True)
    key = _by_head(keys.inputs[1], [0, 2, 3, 1], normalized=True)
    value = _by_head(values.inputs[1], [0, 2, 1, 3], normalized=False)
    if query is None or key is None or value is None or scale is None or result is None:
        return None
    if not _is_transposed(after[0], [0, 2, 1, 3]) or result[0].op_type != "Reshape" or scale.const_value is None:
        return None
    heads = int(scale.const_value.shape.numpy()[1]) if len(scale.const_value.shape) == 4 else 0
    if heads < 1 or scale.const_value.size != heads:
        return None
    return _Attention(query, key, value, input_of(keys, 0), input_of(values, 0), scale, heads, result[0])


def _by_head(value: ir.Value | None, permutation: list[int], normalized: bool) -> ir.Value | None:
    """The projection [R, l, C] behind a Transpose, an LpNormalization over each head's channels and a Reshape."""
    transpose = producer_of(value, "Transpose")
    if transpose is None or not _is_transposed(transpose, permutation):
        return None
    heads = transpose.inputs[0]
    if normalized:
        norm = producer_of(heads, "LpNormalization")
        if norm is None or norm.attributes.get_int("p", 2) != 2 or norm.attributes.get_int("axis", -1) != -1:
            return None
        heads = norm.inputs[0]
    reshape = producer_of(heads, "Reshape")
    return None if reshape is None else reshape.inputs[0]


def _is_transposed(node: ir.Node, permutation: list[int]) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == permutation


def _fuse(graph: ir.Graph, pattern: AttentionPattern, found: _Attention) -> None:
    flat = _flat(graph, found.scale, pattern.name)
    inputs = [found.query, found.key, found.value, found.past_key, found.past_value, flat]
    (y,) = found.result.outputs
    coded = only_use(y)
    quantize = coded[0] if coded is not None and coded[0] in fused_nodes(graph, "Quantize") else None
    caches = ["present_key", "present_value"]
    if quantize is not None and quantize.attributes["ranges"].as_string() == "pair":
        made = insert_operator(
            graph,
            "Attention",
            [*inputs, *quantize.inputs[1:]],
            ["", *CODE_OUTPUTS["pair"], *caches],
            f"{pattern.name}/fused",
            {"heads": found.heads, "ranges": "pair", "bits": quantize.attributes["bits"].as_int()},
            before=found.result,
        )
        for output, old in zip(CODE_OUTPUTS["pair"], quantize.outputs, strict=True):
            old.replace_all_uses_with(made[output])
    else:
        made = insert_operator(
            graph,
            "Attention",
            inputs,
            ["y", "", "", *caches],
            f"{pattern.name}/fused",
            {"heads": found.heads},
            before=found.result,
        )
        take_over(made["y"], y)
    take_over(made["present_key"], pattern.key)
    take_over(made["present_value"], pattern.value)


def _flat(graph: ir.Graph, scale: ir.Value, name: str) -> ir.Value:
    """The heads' scales [H] of the stock constant [1, H, 1, 1]."""
    assert scale.const_value is not None
    return add_initializer(graph, f"{name}.query_scale", scale.const_value.numpy().reshape(-1))
