"""Observers: graph outputs that tell the smallest and largest input of chosen operators."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


def observed_name(node_name: str) -> str:
    """The output that carries the range of the first input of the node `node_name`."""
    return f"observed.{node_name}"


def observe_ranges(model: ir.Model, node_names: Iterable[str]) -> ir.Model:
    """A copy of `model` with one more output for each named node: float32 [2], min and max of its first input.

    Nodes that share an input share its observer.

    Raises:
        ValueError: a name is none of the main graph's nodes.
    """
    model = model.clone()
    graph = model.graph
    nodes = {node.name: node for node in graph}
    observers: dict[ir.Value, ir.Value] = {}
    for name in node_names:
        if name not in nodes:
            raise ValueError(f"no node of the main graph is named {name!r}")
        source = nodes[name].inputs[0]
        assert source is not None
        if source not in observers:
            observers[source] = _append_observer(graph, source)
        output = _append(graph, "Identity", [observers[source]], observed_name(name))
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([2])
        graph.outputs.append(output)
    return model


def _append_observer(graph: ir.Graph, source: ir.Value) -> ir.Value:
    ends = []
    for op_type in ("ReduceMin", "ReduceMax"):
        end = _append(graph, op_type, [source], f"{source.name}.{op_type}", keepdims=0)
        ends.append(_append(graph, "Reshape", [end, _minus_one(graph)], f"{source.name}.{op_type}.1d"))
    return _append(graph, "Concat", ends, f"{source.name}.range", axis=0)


def _append(graph: ir.Graph, op_type: str, inputs: list[ir.Value], output: str, **attributes: int) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=f"observe/{output}")
    graph.append(node)
    node.outputs[0].name = output
    return node.outputs[0]


def _minus_one(graph: ir.Graph) -> ir.Value:
    name = "observe.minus_one"
    if name not in graph.initializers:
        tensor = ir.tensor([-1], dtype=ir.DataType.INT64, name=name)
        value = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
