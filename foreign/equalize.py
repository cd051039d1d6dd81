"""Even out the channels that linear layers read, where a norm's own factors can take it: SmoothQuant.

    y = (gamma norm(x) + beta) W        =        (gamma / s norm(x) + beta / s) (s W)

It costs nothing at run time, and takes from the few channels that are much larger than others (models/equalization.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from nextscale.foreign._names import Names
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Samples
from nextscale.graph_passes._graph_edit import add_initializer, input_of, is_operator
from nextscale.graph_passes.linear_layers import LinearLayer, drop_unused, linear_layers, sharing
from nextscale.graph_passes.observe_inputs import Input, Observer, observe_inputs
from nextscale.models.equalization import equalization_factors
from nextscale.runtime._session import SessionOptions

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Group:
    """Linear layers that alone read what a norm gives, and the constants [C] that its channels are made with."""

    layers: Sequence[LinearLayer]
    constants: Sequence[tuple[ir.Node, int]]

    @property
    def observer(self) -> Observer:
        shape = self.layers[0].activation.shape
        assert shape is not None
        return Observer(Input(self.layers[0].name), "channels", tuple(range(len(shape) - 1)))


def equalize(
    model: ir.Model, alpha: float, samples: Samples, work: Path, options: SessionOptions
) -> tuple[ir.Model, int]:
    """A copy of a model that computes the same up to rounding, and how many inputs of layers were evened out.

    Args:
        model: normalized.
        alpha: how much of the channels' spread the weights take, 0 to 1.
        samples: what it is run on.
        work: an existing folder.
        options: threads and memory.
    """
    model = model.clone()
    layers = [layer for layer in linear_layers(model.graph) if layer.graph is model.graph]  # which can be observed
    groups = [group for shared in sharing(layers) if (group := _group(shared)) is not None]
    if not groups:
        return model, 0
    observers = [group.observer for group in groups]
    running = Running.of(write_graph(observe_inputs(model, observers), work / "channels.onnx"), options)
    largest = [np.zeros(()) for _ in groups]
    for feed in samples:
        found = running.run(feed, [observer.output for observer in observers])
        largest = [
            np.maximum(before, np.abs(found[observer.output]).max(axis=0))
            for before, observer in zip(largest, observers, strict=True)
        ]
    names, done = Names(model), 0
    for group, magnitude in zip(groups, largest, strict=True):
        if np.isfinite(magnitude).all():
            _equalize(model.graph, group, magnitude.astype(np.float32), alpha, names)
            done += 1
    return model, done


def _group(layers: Sequence[LinearLayer]) -> _Group | None:
    """The layers that share an input, if a division of its channels can be folded into what makes them."""
    activation = layers[0].activation
    nodes = {layer.node for layer in layers}
    maker = activation.producer()
    if (
        maker is None
        or activation.is_graph_output()
        or activation.shape is None
        or any(node not in nodes or i != 0 for node, i in activation.uses())
        or any(layer.graph is not maker.graph or not _is_its_own(layer) for layer in layers)
    ):
        return None
    channels = layers[0].weight.const_value
    assert channels is not None
    constants = _affine(maker, int(channels.shape.numpy()[0]))
    return None if constants is None else _Group(layers, constants)


def _is_its_own(layer: LinearLayer) -> bool:
    """Whether no other reads its weight of finite numbers."""
    weight = layer.weight
    if weight.is_graph_output() or len(tuple(weight.uses())) != 1 or weight.dtype != ir.DataType.FLOAT:
        return False
    assert weight.const_value is not None
    return bool(np.isfinite(weight.const_value.numpy()).all())


def _affine(maker: ir.Node, channels: int) -> list[tuple[ir.Node, int]] | None:
    """Inputs of nodes that are constants [C], whose division divides what `maker` gives; None where there are none."""

    def is_row(node: ir.Node, i: int) -> bool:
        value = node.inputs[i] if i < len(node.inputs) else None
        return value is not None and value.const_value is not None and value.const_value.shape.numpy() == (channels,)

    def row_of(node: ir.Node) -> int | None:
        return next((i for i in (0, 1) if is_row(node, i)), None)

    if is_operator(maker, "LayerNormalization"):
        has_bias = len(maker.inputs) > 2 and maker.inputs[2] is not None
        rows = [1, 2] if has_bias else [1]
        return [(maker, i) for i in rows] if all(is_row(maker, i) for i in rows) else None
    if is_operator(maker, "Mul"):
        i = row_of(maker)
        return None if i is None else [(maker, i)]
    if not is_operator(maker, "Add"):
        return None
    i = row_of(maker)
    if i is None:
        return None
    product = input_of(maker, 1 - i)
    mul = product.producer()
    if mul is None or not is_operator(mul, "Mul") or product.is_graph_output() or len(tuple(product.uses())) != 1:
        return None
    j = row_of(mul)
    return None if j is None else [(mul, j), (maker, i)]


def _equalize(graph: ir.Graph, group: _Group, magnitude: Floats, alpha: float, names: Names) -> None:
    weights = [_array(layer.weight) for layer in group.layers]
    reading = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    factors = equalization_factors(torch.from_numpy(magnitude), torch.from_numpy(reading), alpha).numpy()
    for layer in group.layers:
        _change(graph, layer.node, 1, lambda weight: weight * factors[:, None], names)
    for node, i in group.constants:
        _change(graph, node, i, lambda row: row / factors, names)


def _change(graph: ir.Graph, node: ir.Node, i: int, change: Callable[[Floats], Floats], names: Names) -> None:
    """Let the node read another constant; whoever else reads the old one keeps it."""
    old = input_of(node, i)
    new = add_initializer(graph, names.value(f"{old.name}.equalized"), change(_array(old)).astype(np.float32))
    node.replace_input_with(i, new)
    drop_unused(graph, old)


def _array(value: ir.Value) -> Floats:
    assert value.const_value is not None
    array: Floats = value.const_value.numpy()
    return array
