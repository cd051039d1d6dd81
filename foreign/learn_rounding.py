"""Rounding of each layer's weights that is learned from what the layer reads on the samples (GPTQ)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.foreign.observe import AT_ONCE, observed_values
from nextscale.foreign.samples import Samples
from nextscale.graph_passes.gptq import gptq
from nextscale.graph_passes.linear_layers import LinearLayer
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.qparams import QuantizedWeight, WeightQParams
from nextscale.graph_passes.recipe import WeightRecipe
from nextscale.runtime._session import SessionOptions

# Of powers of two that float32 holds, and the inverse of which it holds.
LARGEST_EXPONENT = 126


def learn_rounding(
    model: ir.Model,
    layers: Sequence[LinearLayer],
    weights: WeightRecipe,
    samples: Samples,
    work: Path,
    options: SessionOptions,
) -> dict[str, QuantizedWeight]:
    """By name of each layer; layers that share a weight are learned from what all of them read, and get the same.

    Args:
        model: normalized.
        layers: of its main graph.
        weights: bits and the rule of the ranges.
        samples, work, options: as elsewhere.
    """
    by_weight: dict[ir.Value, list[str]] = {}
    for layer in layers:
        by_weight.setdefault(layer.weight, []).append(layer.name)
    groups, learned = list(by_weight.items()), dict[str, QuantizedWeight]()
    # Moments of all layers at once would take as much memory as several models.
    for first in range(0, len(groups), AT_ONCE):
        part = groups[first : first + AT_ONCE]
        names = [name for _, of_one in part for name in of_one]
        moments = _moments(model, names, samples, work, options)
        for weight, of_one in part:
            assert weight.const_value is not None
            found = _rounded(weight.const_value.numpy(), sum(moments[name] for name in of_one), weights)
            learned |= dict.fromkeys(of_one, found)
    return learned


def _moments(
    model: ir.Model, names: Sequence[str], samples: Samples, work: Path, options: SessionOptions
) -> Mapping[str, NDArray[np.float64]]:
    """Second moments [K, K] of what each layer reads, not divided by their number."""
    found: dict[str, NDArray[np.float64]] = {}
    for key, x in observed_values(model, [Input(name) for name in names], samples, work, options):
        product = _product(x.reshape(-1, x.shape[-1]))
        found[key.node] = found[key.node] + product if key.node in found else product
    return found


def _product(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """rows' rows [K, K]; in units of a power of two near their largest, so that float32 holds it whatever they are."""
    exponent = int(np.frexp(np.abs(rows).max(initial=0))[1])
    exponent = min(max(exponent, -LARGEST_EXPONENT), LARGEST_EXPONENT)
    scaled = rows * np.float32(2.0**-exponent)
    return (scaled.T @ scaled).astype(np.float64) * 4.0**exponent


def _rounded(weight: NDArray[np.float32], moments: NDArray[np.float64] | int, weights: WeightRecipe) -> QuantizedWeight:
    """A weight [K, N]; to nearest where nothing but zeros was read."""
    rows = np.ascontiguousarray(weight.T)
    qparams = WeightQParams.choose(rows, 0, weights.bits, weights.range)
    codes = gptq(rows, np.asarray(moments), qparams.scale, qparams.qmin, qparams.qmax)
    return QuantizedWeight(np.ascontiguousarray(codes.T), qparams.scale, qparams.qmin)
