"""Attention of some queries at a time, so that the scores of all of them are never in memory together.

    query -> scores ... softmax -> mix   becomes   query -> Pad -> n parts -> Scan (scores ... softmax -> mix) -> Slice

The parts are as few as keep the scores of one within a bound, and equally long: zeros fill up the last, and what comes
of them is cut off. How many there are is found when the graph runs; of few tokens there is one. A query's result does
not depend on other queries, so that only the order of sums within a product may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._attention_patterns import AttentionPattern, Refusal, attention_patterns
from nextscale.graph_passes._fused_nodes import only_use
from nextscale.graph_passes._graph_edit import replace, splice


def tile_attention(model: ir.Model, max_scores: int) -> ir.Model:
    """A copy of `model` whose attentions, of queries [R, H, l, d] and T keys, are in parts of R H T l / n scores.

    n is the least with which these are `max_scores` at most, or l. Attentions in subgraphs stay as they are, so that
    applied again it changes nothing; `untiled_attentions` names others.
    """
    model = model.clone()
    for pattern in _of_main_graph(model):
        nodes = _nodes_of(pattern)
        if not isinstance(nodes, Refusal):
            _tile(model.graph, pattern, nodes, max_scores)
    return model


def untiled_attentions(model: ir.Model) -> list[Refusal]:
    """The attentions of the main graph that are not tiled, and why."""
    found = (_nodes_of(pattern) for pattern in _of_main_graph(model))
    return [item for item in found if isinstance(item, Refusal)]


def _of_main_graph(model: ir.Model) -> list[AttentionPattern]:
    return [pattern for pattern in attention_patterns(model.graph) if pattern.graph is model.graph]


def _nodes_of(pattern: AttentionPattern) -> list[ir.Node] | Refusal:
    """The nodes from the one product to the other, both with it."""
    if pattern.query.shape is None or len(pattern.query.shape) != 4:
        return Refusal(pattern.mix, "its queries are not known to be of four dimensions, [R, H, l, d]")
    nodes = [pattern.scores]
    while nodes[-1] is not pattern.mix:
        (value,) = nodes[-1].outputs
        use = only_use(value)
        if use is None:
            return Refusal(pattern.mix, f"{value.name} is read by others, too")
        node, place = use
        beside = [operand for i, operand in enumerate(node.inputs) if i != place and operand is not None]
        if node is not pattern.mix and not all(map(_same_for_all_queries, beside)):
            return Refusal(pattern.mix, f"what {node.name} takes beside the scores may differ between queries")
        nodes.append(node)
    return nodes


def _same_for_all_queries(value: ir.Value) -> bool:
    """Whether the axis of queries, the last but one, is missing or of length 1."""
    return value.shape is not None and (len(value.shape) < 2 or value.shape[-2] == 1)


def _tile(graph: ir.Graph, pattern: AttentionPattern, nodes: Sequence[ir.Node], max_scores: int) -> None:
    def body(op: OpBuilder, query: ir.Value, key: ir.Value) -> Sequence[ir.Value]:
        length = op.Shape(query, start=2, end=3)
        of_query = op.ReduceProd(op.Concat(op.Shape(query, end=2), op.Shape(key, start=3), axis=0), keepdims=1)
        parts = _rounded_up(op, length, op.Max(op.Div([max_scores], of_query), [1]))
        size = _rounded_up(op, length, parts)
        filled = op.Mul(parts, size)
        queries = op.Pad(query, op.Concat([0], op.Sub(filled, length), axis=0), None, [2])
        queries = op.Reshape(queries, op.Concat([0, 0], parts, size, [-1], axis=0))
        axes = {"scan_input_axes": [2], "scan_output_axes": [2]}
        found = op.Scan(queries, body=_part(pattern, nodes), num_scan_inputs=1, **axes)
        return [op.Slice(op.Reshape(found, op.Concat([0, 0], filled, [-1], axis=0)), [0], length, [2])]

    operands = [pattern.query, pattern.key]
    (result,) = splice(graph, f"{pattern.name}/tiled", operands, body, before=pattern.mix)
    replace(pattern.mix.outputs[0], result)
    for node in reversed(nodes[:-1]):
        graph.remove(node, safe=True)


def _rounded_up(op: OpBuilder, x: ir.Value, divisor: ir.Value | list[int]) -> ir.Value:
    """x / divisor of positive integers."""
    return op.Div(op.Add(x, op.Sub(divisor, [1])), divisor)


def _part(pattern: AttentionPattern, nodes: Sequence[ir.Node]) -> ir.Graph:
    """The attention of a part of the queries, [R, H, l / n, d] both; keys, values and masks are the outer graph's."""
    queries = _of_part(pattern.query, f"{pattern.name}/queries")
    made, copies = {pattern.query: queries}, []
    for node in nodes:
        inputs = [value if value is None else made.get(value, value) for value in node.inputs]
        if node is pattern.scores:
            inputs[1] = pattern.key
        (output,) = node.outputs
        made[output] = _of_part(output, f"{output.name}/part")
        attributes = node.attributes.values()
        outputs = [made[output]]
        copies.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name))
    imports = dict(pattern.graph.opset_imports)  # what passes go by that change what is in the part
    result = made[pattern.mix.outputs[0]]
    return ir.Graph([queries], [result], nodes=copies, name=f"{pattern.name}/part", opset_imports=imports)


def _of_part(value: ir.Value, name: str) -> ir.Value:
    """What has the queries' axis in the part, where it is called "q"."""
    shape = None if value.shape is None else ir.Shape([*value.shape[:-2], "q", value.shape[-1]])
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
