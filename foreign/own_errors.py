"""How much quantizing one operator alone changes its output, on the first sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign.observe import observed_values
from nextscale.foreign.plan import Plan
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Samples
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes._dynamic_ranges import LEAST_SCALE
from nextscale.graph_passes.integer_model import IntegerLayer
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.qparams import ActivationQParams, QuantizedWeight, Range
from nextscale.runtime._session import SessionOptions

Floats = NDArray[np.float32]
# Rows of a layer's input that are looked at, spread over all.
MOST_ROWS = 4096


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
        exact, found = comparable(exact, found)
        return cls.of_squares(float(np.square(exact).sum()), float(np.square(found - exact).sum()))

    @classmethod
    def of_squares(cls, signal: float, noise: float) -> Error:
        """Of the sums of the squares of what should be, and of the difference."""
        if noise == 0:
            return cls(0.0, math.inf)
        relative = math.sqrt(noise / signal) if signal > 0 else math.inf
        return cls(relative, -20 * math.log10(relative) if signal > 0 else -math.inf)


def comparable(exact: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in float64; what is not finite where it should be so, such as a mask's minus infinity, is zero in both, and
    what should be and is not is infinitely off."""
    exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    finite = np.isfinite(exact)
    same = ~finite & ((exact == found) | (np.isnan(exact) & np.isnan(found)))
    return np.where(finite, exact, 0.0), np.where(finite, found, np.where(same, 0.0, np.inf))


def own_errors(model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> dict[str, Error]:
    """By name, of all that the plan makes integer in a normalized model."""
    return _of_layers(model, plan, samples, work, options) | _of_attentions(model, plan, samples, work, options)


def _of_layers(model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions) -> dict[str, Error]:
    layers = {layer.name: layer for layer in find_layers(model.graph, set(plan.integer.layers))}
    bits, errors = plan.integer.bits, {}
    for key, x in observed_values(model, [Input(name) for name in layers], samples.first(), work, options):
        tensor = layers[key.node].weight.const_value
        assert tensor is not None
        weight = tensor.numpy()
        quantized = plan.rounder(key.node, weight)
        errors[key.node] = layer_error(
            x, weight, quantized, plan.integer.layers[key.node], bits, plan.ranges.get(key.node)
        )
    return errors


def layer_error(
    x: Floats, weight: Floats, quantized: QuantizedWeight, layer: IntegerLayer, bits: int, known: Range | None
) -> Error:
    """Of x [..., K] times weight [K, N], in NumPy.

    Args:
        x, weight: in float.
        quantized: the weight's codes.
        layer: how its input is quantized.
        bits: of the input's codes.
        known: its static range [1]; None where it is found at run time.
    """
    if layer.granularity == "image":
        coded = by_image(x, bits)
    elif layer.granularity == "token":
        assert layer.zero_point is not None
        coded = by_token(x, layer.zero_point, bits)
    else:
        assert known is not None
        qparams = ActivationQParams.from_range(known, bits)
        coded = qparams.dequantize(qparams.quantize(x))
    rows, coded = (_some_rows(value) for value in (x, coded))
    return Error.of(rows @ weight, coded @ (quantized.codes * quantized.scale))


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


def _some_rows(x: Floats) -> Floats:
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: max(1, -(-len(rows) // MOST_ROWS))]


def _of_attentions(
    model: ir.Model, plan: Plan, samples: Samples, work: Path, options: SessionOptions
) -> dict[str, Error]:
    attention = plan.integer.attention
    if attention is None:
        return {}
    # A pass leaves the names of values as they are.
    outputs = {pattern.name: str(pattern.mix.outputs[0].name) for pattern in attention_patterns(model.graph)}

    def given(of: ir.Model, names: Sequence[str]) -> Mapping[str, Floats]:
        """What the second product of some attentions gives."""
        wanted = {outputs[name]: name for name in names}
        path = write_graph(_exposed(of, set(wanted)), work / "attention.onnx")
        found = Running.of(path, options).run(samples.feeds[0], list(wanted))
        return {wanted[output]: value for output, value in found.items()}

    exact = given(model, attention.names)
    return {
        name: Error.of(exact[name], given(plan.apply_attention(model, [name]), [name])[name])
        for name in attention.names
    }


def _exposed(model: ir.Model, values: set[str]) -> ir.Model:
    """A copy with further outputs."""
    model = model.clone()
    for node in model.graph:
        for output in node.outputs:
            if output.name in values and not output.is_graph_output():
                output.dtype = ir.DataType.FLOAT
                model.graph.outputs.append(output)
    return model
