"""Observers: graph outputs that tell how much attention each token draws (Score, Eq. 11)."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from nextscale.graph_passes._attention_patterns import AttentionPattern, attention_patterns

PREFIX = "scores."
AXES = "observe_scores.axes"


def scores_name(mix_name: str) -> str:
    """The output that carries the scores of the attention whose product with the values is the node `mix_name`."""
    return f"{PREFIX}{mix_name}"


def observe_scores(model: ir.Model, names: Collection[str] | None = None) -> ir.Model:
    """A copy of `model` with one more output for each attention: the mean of its weights over the queries (Eq. 11).

    Weights [rows, H, T', T] give float32 [rows, H, T]. Applied again it changes nothing, since weights that are
    observed are no longer the product's alone.

    Args:
        model: a graph with attention.
        names: of the second MatMul of each attention that is observed; None: of all.
    Raises:
        ValueError: an attention is in a subgraph, whose values cannot be outputs of the model.
    """
    model = model.clone()
    for pattern in attention_patterns(model.graph):
        if names is not None and pattern.name not in names:
            continue
        if pattern.graph is not model.graph:
            raise ValueError(f"{pattern.name} is in a subgraph; scores are observed in the main graph only")
        model.graph.outputs.append(_append_observer(model.graph, pattern))
    return model


def _append_observer(graph: ir.Graph, pattern: AttentionPattern) -> ir.Value:
    name = scores_name(pattern.name)
    node = ir.node("ReduceMean", [pattern.weights, _axes(graph)], {"keepdims": 0}, name=f"observe/{name}")
    graph.append(node)
    output = node.outputs[0]
    output.name, output.dtype = name, ir.DataType.FLOAT
    shape = pattern.weights.shape
    if shape is not None:
        output.shape = ir.Shape([*shape[:-2], shape[-1]])
    return output


def _axes(graph: ir.Graph) -> ir.Value:
    """int64 [1]: the axis of the queries, the last but one."""
    if AXES not in graph.initializers:
        tensor = ir.tensor([-2], dtype=ir.DataType.INT64, name=AXES)
        value = ir.Value(name=AXES, shape=ir.Shape([1]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[AXES]
