"""The choice of tokens from logits as one operator of nextscale-ops.

What export/sampling_graph.py makes   becomes   Sample
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._fused_nodes import OPERATORS, OPERATORS_VERSION, insert_operator, producer_of, take_over
from nextscale.graph_passes._graph_edit import input_of, is_operator

# Between the logits and the token that is sampled, and in the branch that filters: operators, and how many.
_SAMPLED = Counter(
    Add=1, Cast=4, CumSum=3, Exp=1, GatherND=2, Greater=2, If=1, Less=1, LessOrEqual=2, Min=2, Mul=3, Or=1,
    ReduceMax=1, ReduceSum=3, Reshape=1, Slice=2, Squeeze=4, Sub=2, Unsqueeze=2, Where=1,
)  # fmt: skip
_FILTERED = Counter(
    CumSum=1, Exp=1, Greater=2, Less=2, Mul=1, ReduceMin=1, ReduceSum=1, Shape=1, Slice=1, Squeeze=1, Sub=1, TopK=1,
    Unsqueeze=1, Where=4,
)  # fmt: skip


@dataclass(frozen=True)
class _Sampling:
    """Where a graph chooses tokens: the operator's inputs, the `If` that filters, the node that gives the tokens."""

    logits: ir.Value
    uniforms: ir.Value
    forced: ir.Value
    top_k: ir.Value
    top_p: ir.Value
    filters: ir.Node
    result: ir.Node


def fuse_sampling(model: ir.Model) -> ir.Model:
    """A copy of `model` whose tokens are chosen by single nodes."""
    model = model.clone()
    model.opset_imports.setdefault(OPERATORS, OPERATORS_VERSION)
    for found in [found for node in model.graph if (found := _sampling(node)) is not None]:
        inputs = [found.logits, found.uniforms, found.forced, found.top_k, found.top_p]
        name = f"{found.result.name}/sample"
        made = insert_operator(model.graph, "Sample", inputs, ["tokens"], name, {}, before=found.result)
        take_over(made["tokens"], found.result.outputs[0])
        RemoveUnusedNodesPass()(model)
        if found.filters.graph is None:  # else what the branch reads from outside would seem to be read
            for node in found.filters.attributes["then_branch"].as_graph():
                for i in range(len(node.inputs)):
                    node.replace_input_with(i, None)
    RemoveUnusedNodesPass()(model)
    return model


def _sampling(node: ir.Node) -> _Sampling | None:
    """What a node `Where(forced < 0, sampled, forced)` ends, if that is all of it."""
    if not is_operator(node, "Where"):
        return None
    sampled, forced = input_of(node, 1), input_of(node, 2)
    is_free = producer_of(node.inputs[0], "Less")
    if is_free is None or is_free.inputs[0] is not forced:
        return None
    filters = [above for above in _above(sampled, set()) if is_operator(above, "If")]
    either = producer_of(filters[0].inputs[0], "Or") if len(filters) == 1 else None
    limits = [producer_of(value, "Greater") for value in either.inputs] if either else []
    threshold = filters[0].outputs[0].uses() if filters else ()
    dropped = next((use.node for use in threshold if is_operator(use.node, "Less")), None)
    if dropped is None or len(limits) != 2 or None in limits:
        return None
    top_k, top_p = (input_of(limit, 0) for limit in limits if limit is not None)
    if (top_k.dtype, top_p.dtype) != (ir.DataType.INT64, ir.DataType.FLOAT):
        return None
    logits = input_of(dropped, 0)
    capped = [above for above in _above(sampled, {logits}) if is_operator(above, "Min") and _has_constant(above)]
    if len(capped) != 1:
        return None
    uniforms = input_of(capped[0], 0)
    between = Counter(above.op_type for above in _above(sampled, {logits, uniforms, top_k, top_p}))
    branch = filters[0].attributes["then_branch"].as_graph()
    inside = Counter(filtered.op_type for filtered in branch if filtered.op_type != "Constant")
    if between != _SAMPLED or inside != _FILTERED:
        return None
    return _Sampling(logits, uniforms, forced, top_k, top_p, filters[0], node)


def _above(value: ir.Value, ends: set[ir.Value]) -> Iterator[ir.Node]:
    """The nodes that a value is made by, each once, up to those that make `ends`."""
    seen: set[ir.Node] = set()
    left = [value]
    while left:
        value = left.pop()
        node = None if value in ends else value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left.extend(read for read in node.inputs if read is not None)


def _has_constant(node: ir.Node) -> bool:
    return any(value is not None and ir.convenience.get_const_tensor(value) is not None for value in node.inputs)
