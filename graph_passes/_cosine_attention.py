"""Find attention of cosine similarity with caches around a pattern of `_attention_patterns`.

query -> Reshape -> LpNormalization -> Transpose -> Mul scale ------------+
key   -> Reshape -> LpNormalization -> Transpose -> Concat past_key ------+-> MatMul -> Softmax -> MatMul -> y
value -> Reshape -> Transpose -> Concat past_value ------------------------------------------------+
y -> Transpose -> Reshape
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._attention_patterns import AttentionPattern, Refusal
from nextscale.graph_passes._fused_nodes import only_use, producer_of
from nextscale.graph_passes._graph_edit import add_initializer, input_of, is_operator


@dataclass(frozen=True)
class CosineAttention:
    """What makes an attention's operands.

    Attributes:
        pattern: its products.
        query, key, value: of this stage's tokens, float32 [R, l, C].
        past_key, past_value: of those before.
        scale: of the queries, a constant [1, H, 1, 1].
        heads: H.
        result: the Reshape after it, which gives [R, l, C].
    """

    pattern: AttentionPattern
    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    scale: ir.Value
    heads: int
    result: ir.Node

    def operands(self, graph: ir.Graph) -> list[ir.Value | None]:
        """The first inputs of Attention and IntegerAttention; the scales [H] become an initializer."""
        assert self.scale.const_value is not None
        name = f"{self.pattern.name}.query_scale"
        flat = graph.initializers.get(name) or add_initializer(graph, name, self.scale.const_value.numpy().reshape(-1))
        return [self.query, self.key, self.value, self.past_key, self.past_value, flat]


def cosine_attention(pattern: AttentionPattern) -> CosineAttention | Refusal:
    """The attention around the pattern, or why no operator serves it."""

    def refused(reason: str) -> Refusal:
        return Refusal(pattern.mix, reason)

    scaled = producer_of(pattern.query, "Mul")
    if scaled is None or scaled.inputs[1] is None or scaled.inputs[1].const_value is None:
        return refused("its queries are not multiplied by a constant of each head, as those of cosine similarity are")
    keys, values = producer_of(pattern.key, "Concat"), producer_of(pattern.value, "Concat")
    if keys is None or values is None or len(keys.inputs) != 2 or len(values.inputs) != 2:
        return refused("its keys or values are not a cache and those of this stage")
    scale, shape = scaled.inputs[1], scaled.inputs[1].const_value.shape.numpy()
    if len(shape) != 4 or shape != (1, shape[1], 1, 1):
        return refused(f"the scale of its queries has the shape {list(shape)}, expected [1, H, 1, 1]")
    query = _by_head(scaled.inputs[0], [0, 2, 1, 3], normalized=True)
    key = _by_head(keys.inputs[1], [0, 2, 3, 1], normalized=True)
    value = _by_head(values.inputs[1], [0, 2, 1, 3], normalized=False)
    if query is None or key is None or value is None:
        return refused("its queries or keys are not L2-normalized, or its operands lie otherwise than [R, l, H, d]")
    after = only_use(pattern.mix.outputs[0])
    joined = None if after is None or not _is_transposed(after[0], [0, 2, 1, 3]) else only_use(after[0].outputs[0])
    if joined is None or not is_operator(joined[0], "Reshape"):
        return refused("its heads are not joined by a Transpose and a Reshape")
    past_key, past_value = input_of(keys, 0), input_of(values, 0)
    return CosineAttention(pattern, query, key, value, past_key, past_value, scale, int(shape[1]), joined[0])


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
