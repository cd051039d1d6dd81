"""What quantizing one operator alone makes of its output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign._names import Names
from nextscale.foreign.observe import AT_ONCE, numbered_values
from nextscale.foreign.plan import Plan
from nextscale.foreign.running import Running, giving, write_graph
from nextscale.foreign.samples import Samples
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes._dynamic_ranges import LEAST_SCALE
from nextscale.graph_passes.convolutions import ConvolutionLayer, convolutions
from nextscale.graph_passes.integer_model import IntegerLayer
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.runtime._session import SessionOptions

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Error:
    """Of what is computed to what it should be.

    Attributes:
        relative: root mean square of the difference over that of the exact values; infinite where these are zero.
        sqnr: the same as signal over noise, dB.
    """

    relative: float
    sqnr: float

    @classmethod
    def of(cls, exact: NDArray[np.floating], found: NDArray[np.floating]) -> Error:
        """Of two arrays of one shape."""
        return cls.of_squares(*squares(exact, found))

    @classmethod
    def of_squares(cls, signal: float, noise: float) -> Error:
        """Of the sums of the squares of what should be, and of the difference."""
        if noise == 0:
            return cls(0.0, math.inf)
        relative = math.sqrt(noise / signal) if signal > 0 else math.inf
        return cls(relative, -20 * math.log10(relative) if signal > 0 else -math.inf)


def squares(exact: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """The sums of the squares of what should be, and of the difference."""
    exact, found = comparable(exact, found)
    return float(np.square(exact).sum()), float(np.square(found - exact).sum())


def comparable(exact: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64; what is not finite where it should be so, such as a mask's minus infinity, is zero in both, and
    what should be and is not is infinitely off."""
    exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    finite = np.isfinite(exact)
    same = ~finite & ((exact == found) | (np.isnan(exact) & np.isnan(found)))
    found = np.where(finite & np.isnan(found), np.inf, found)
    return np.where(finite, exact, 0.0), np.where(finite, found, np.where(same, 0.0, np.inf))


@dataclass(frozen=True)
class Change:
    """What becomes of an operator's output on a sample, if it alone is quantized.

    Attributes:
        name: of the operator.
        sample: which, counted from 0.
        output: the name of what it gives, in the float model: of a layer without its bias, of a convolution with its
            Relu or Clip.
        exact, found: in float, and in integers.
    """

    name: str
    sample: int
    output: str
    exact: Floats
    found: Floats


def changed_outputs(model: ir.Model, plan: Plan) -> dict[str, str]:
    """The name of what each operator gives, by its own, of all that the plan makes integer in a normalized model."""
    given = {layer.name: layer.node.outputs[0] for layer in find_layers(model.graph, set(plan.integer.layers))}
    given |= {layer.name: layer.result for layer in convolutions(model.graph) if layer.name in plan.convolutions}
    attentions = () if plan.integer.attention is None else plan.integer.attention.names
    given |= {
        pattern.name: pattern.mix.outputs[0]
        for pattern in attention_patterns(model.graph)
        if pattern.name in attentions
    }
    return {name: str(value.name) for name, value in given.items()}


def own_changes(model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> Iterator[Change]:
    """Of all that the plan makes integer in a normalized model, on each of the samples.

    Each alone reads what it reads in float, in the codes that it has where all are integer.
    """
    yield from _of_layers(model, plan, samples, work, options)
    yield from _of_convolutions(model, plan, samples, work, options)
    yield from _of_attentions(model, plan, samples, work, options)


def _of_layers(model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> Iterator[Change]:
    layers = {layer.name: layer for layer in find_layers(model.graph, set(plan.integer.layers))}
    for key, sample, x in numbered_values(model, _first_inputs(layers), samples, work, options):
        name, layer = key.node, layers[key.node]
        tensor = layer.weight.const_value
        assert tensor is not None
        weight = tensor.numpy()
        quantized = plan.rounder(name, weight)
        coded = coded_input(x, plan.integer.layers[name], plan.integer.bits, plan.ranges.get(name))
        found = coded @ (quantized.codes * quantized.scale)
        yield Change(name, sample, str(layer.node.outputs[0].name), x @ weight, found)


def _first_inputs(names: Iterable[str]) -> list[Input]:
    return [Input(name) for name in names]


def coded_input(x: Floats, layer: IntegerLayer, bits: int, known: Range | None) -> Floats:
    """x [..., K] as its codes stand for it.

    Args:
        x: in float.
        layer: how it is quantized.
        bits: of its codes.
        known: its static range [1]; None where it is found at run time.
    """
    if layer.granularity == "image":
        return by_image(x, bits)
    if layer.granularity == "token":
        assert layer.zero_point is not None
        return by_token(x, layer.zero_point, bits)
    assert known is not None
    qparams = ActivationQParams.from_range(known, bits)
    return qparams.dequantize(qparams.quantize(x))


def by_image(x: Floats, bits: int) -> Floats:
    """x [R, ...] as its codes stand for it, with a range for each entry of the first axis."""
    axes, qmax = tuple(range(1, x.ndim)), 2**bits - 1
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    scale = np.maximum((high - low) / np.float32(qmax), np.float32(LEAST_SCALE))
    return _as_coded(x, scale, np.clip(np.round(-low / scale), 0, qmax), qmax)


def by_token(x: Floats, zero_point: int, bits: int) -> Floats:
    """x [..., K] as its codes stand for it, with a range for each token."""
    qmax = 2**bits - 1
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = np.maximum(high / np.float32(qmax - zero_point), -low / np.float32(zero_point))
    return _as_coded(x, np.maximum(scale, np.float32(LEAST_SCALE)), np.float32(zero_point), qmax)


def _as_coded(x: Floats, scale: Floats, zero_point: Floats | np.float32, qmax: int) -> Floats:
    found: Floats = (np.clip(np.round(x / scale) + zero_point, 0, qmax) - zero_point) * scale
    return found


def _of_convolutions(
    model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions
) -> Iterator[Change]:
    layers = {layer.name: layer for layer in convolutions(model.graph) if layer.name in plan.convolutions}
    codes = plan.convolution_codes(model)

    @lru_cache(AT_ONCE)
    def runnings(name: str) -> list[Running]:
        """Of the convolution alone, in float, and in integers with the codes that it has among all."""
        alone = _alone(model, layers[name])
        both = alone, plan.apply_convolutions(alone, [name], codes)
        return [Running.of(write_graph(of, work / "convolution.onnx"), options) for of in both]

    for key, sample, x in numbered_values(model, _first_inputs(layers), samples, work, options):
        name, layer = key.node, layers[key.node]
        feed = {str(layer.activation.name): x}
        exact, found = (running.run(feed)[running.outputs[0]] for running in runnings(name))
        yield Change(name, sample, str(layer.result.name), exact, found)


def _alone(model: ir.Model, layer: ConvolutionLayer) -> ir.Model:
    """A model of one convolution, whose output is not the result itself."""
    graph = ir.convenience.extract(model.graph, [layer.activation], [layer.result])
    graph.inputs[0].dtype, graph.inputs[0].shape = ir.DataType.FLOAT, None
    node = ir.node("Identity", [graph.outputs[0]])
    alone = ir.Model(graph, ir_version=model.ir_version)
    node.outputs[0].name, node.outputs[0].dtype = Names(alone).value(f"{layer.name}.result"), ir.DataType.FLOAT
    graph.append(node)
    graph.outputs[0] = node.outputs[0]
    return alone


def _of_attentions(
    model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions
) -> Iterator[Change]:
    attention = plan.integer.attention
    if attention is None:
        return
    # A pass leaves the names of values as they are.
    outputs = changed_outputs(model, plan)

    def given(of: ir.Model, names: Sequence[str]) -> Iterator[Mapping[str, Floats]]:
        """What the second product of some attentions gives, on each sample."""
        wanted = {outputs[name]: name for name in names}
        path = write_graph(giving(of, wanted), work / "attention.onnx")
        running = Running.of(path, options)
        for feed in samples:
            found = running.run(feed)
            yield {wanted[output]: value for output, value in found.items()}

    exact = list(given(model, attention.names))
    for name in attention.names:
        for sample, found in enumerate(given(plan.apply_attention(model, [name]), [name])):
            yield Change(name, sample, outputs[name], exact[sample][name], found[name])
