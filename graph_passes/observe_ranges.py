"""Observers: graph outputs that tell the smallest and largest input of chosen operators.

An observed input is named by its node, "blocks.0.ffn.fc1", or "node:1" for the second input of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir


def observed_name(node_name: str) -> str:
    """The output that carries the range of the input `node_name`."""
    return f"observed.{node_name}"


def channels_name(node_name: str) -> str:
    """The output that carries the range of each channel of the input `node_name`."""
    return f"channels.{node_name}"


def observe_ranges(model: ir.Model, node_names: Iterable[str]) -> ir.Model:
    """A copy of `model` with one more output for each named input: float32 [2], min and max.

    Nodes that share an input share its observer.

    Raises:
        ValueError: a name is none of the main graph's nodes.
    """
    return _observe(model, {name: observed_name(name) for name in node_names}, [])


def observe_channels(model: ir.Model, node_names: Iterable[str], axes: Sequence[int] = (0, 1)) -> ir.Model:
    """The same for each channel, reduced over `axes`, as the output `channels_name`.

    By default float32 [2, C] for an input [2B, l, C]; with (0, 2, 3) for [B, C, H, W].
    """
    return _observe(model, {name: channels_name(name) for name in node_names}, axes)


PARTS: tuple[str, str] = ("uncond", "difference")


def pairs_name(node_name: str, part: str) -> str:
    """The output that carries the range of each channel of a part, "uncond" or "difference", of an input."""
    return f"pairs.{node_name}.{part}"


def observe_pairs(model: ir.Model, node_names: Iterable[str]) -> ir.Model:
    """Two more outputs for each named input [2B, l, C]: float32 [2, C], min and max of the rows without the class, and
    of the difference that the class makes.

    Raises:
        ValueError: a name is none of the main graph's nodes.
    """
    model = model.clone()
    graph, observers = model.graph, dict[ir.Value, tuple[ir.Value, ir.Value]]()
    for name, source in _sources(graph, node_names).items():
        if source not in observers:
            split = ir.node(
                "Split", [source], {"axis": 0, "num_outputs": 2}, num_outputs=2, name=f"observe/{name}/split"
            )
            graph.append(split)
            cond, uncond = split.outputs
            cond.name, uncond.name = f"{source.name}.cond", f"{source.name}.uncond"
            difference = _append(graph, "Sub", [cond, uncond], f"{source.name}.difference")
            observers[source] = (
                _append_observer(graph, uncond, [0, 1]),
                _append_observer(graph, difference, [0, 1]),
            )
        for part, observer in zip(PARTS, observers[source], strict=True):
            output = _append(graph, "Identity", [observer], pairs_name(name, part))
            output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([2, None])
            graph.outputs.append(output)
    return model


def input_name(node_name: str) -> str:
    """The output that carries the input `node_name`."""
    return f"input.{node_name}"


def expose_inputs(model: ir.Model, node_names: Iterable[str]) -> ir.Model:
    """A copy of `model` that also gives each named input, [2B, l, C], as the output `input_name`.

    Raises:
        ValueError: a name is none of the main graph's nodes.
    """
    model = model.clone()
    for name, source in _sources(model.graph, node_names).items():
        output = _append(model.graph, "Identity", [source], input_name(name))
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([None, None, None])
        model.graph.outputs.append(output)
    return model


def _sources(graph: ir.Graph, node_names: Iterable[str]) -> dict[str, ir.Value]:
    """The inputs by name."""
    nodes = {node.name: node for node in graph}
    sources = {}
    for name in node_names:
        node_name, _, position = name.partition(":")
        if node_name not in nodes:
            raise ValueError(f"no node of the main graph is named {node_name!r}")
        source = nodes[node_name].inputs[int(position or 0)]
        assert source is not None
        sources[name] = source
    return sources


def _observe(model: ir.Model, outputs: Mapping[str, str], axes: Sequence[int]) -> ir.Model:
    """Reduce the first input of each named node over `axes` (none: all) and give the result as the named output."""
    model = model.clone()
    graph = model.graph
    observers: dict[ir.Value, ir.Value] = {}
    for name, source in _sources(graph, outputs).items():
        if source not in observers:
            observers[source] = _append_observer(graph, source, axes)
        output = _append(graph, "Identity", [observers[source]], outputs[name])
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape([2, None] if axes else [2])
        graph.outputs.append(output)
    return model


def _append_observer(graph: ir.Graph, source: ir.Value, axes: Sequence[int]) -> ir.Value:
    kind = "channels" if axes else "range"
    ends = []
    for op_type in ("ReduceMin", "ReduceMax"):
        inputs = [source, _constant(graph, axes)] if axes else [source]
        end = _append(graph, op_type, inputs, f"{source.name}.{kind}.{op_type}", keepdims=0)
        ends.append(_append(graph, "Unsqueeze", [end, _constant(graph, [0])], f"{source.name}.{kind}.{op_type}.row"))
    return _append(graph, "Concat", ends, f"{source.name}.{kind}", axis=0)


def _append(graph: ir.Graph, op_type: str, inputs: list[ir.Value], output: str, **attributes: int) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=f"observe/{output}")
    graph.append(node)
    node.outputs[0].name = output
    return node.outputs[0]


def _constant(graph: ir.Graph, numbers: Sequence[int]) -> ir.Value:
    name = f"observe.{'_'.join(map(str, numbers))}"
    if name not in graph.initializers:
        tensor = ir.tensor(list(numbers), dtype=ir.DataType.INT64, name=name)
        shape = ir.Shape([len(numbers)])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
