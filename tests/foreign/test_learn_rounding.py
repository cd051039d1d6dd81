"""GPTQ of foreign layers: what it reads, what layers that share a weight get, and that it lessens the error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from nextscale.foreign.learn_rounding import learn_rounding
from nextscale.foreign.normalize import normalize
from nextscale.foreign.samples import graph_inputs, read_samples
from nextscale.graph_passes.gptq import gptq
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.graph_passes.qparams import WeightQParams
from nextscale.graph_passes.recipe import WeightRecipe
from nextscale.runtime._session import SessionOptions

from .block_model import block, samples, weights

SHARED = """g (float[N, 6, 8] x, float[N, 6, 8] z) => (float[N, 6, 8] y, float[N, 6, 8] u) {
    y = MatMul (x, wq)
    u = MatMul (z, wq)
}"""


def learned(model: ir.Model, arrays: dict[str, np.ndarray], bits: int, work: Path) -> dict[str, np.ndarray]:
    """Codes [K, N] of each layer."""
    given = read_samples(arrays, graph_inputs(model.graph))
    found = learn_rounding(
        model, linear_layers(model.graph), WeightRecipe(bits), given, work, SessionOptions(threads=1)
    )
    return {name: of_one.codes for name, of_one in found.items()}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_codes_are_those_of_the_inputs_moments(tmp_path: Path, bits: int) -> None:
    text = "g (float[N, 6, 8] x) => (float[N, 6, 16] y) { y = MatMul (x, w1) }"
    x, weight = samples(40)["x"], np.asarray(weights()["w1"])
    found = learned(normalize(block(text)).model, {"x": x}, bits, tmp_path)["y"]
    rows = x.reshape(-1, 8).astype(np.float64)
    qparams = WeightQParams.choose(np.ascontiguousarray(weight.T), 0, bits, "max")
    expected = gptq(weight.T, rows.T @ rows, qparams.scale, qparams.qmin, qparams.qmax).T
    assert np.mean(found != expected) < 0.01  # float32 and float64 sums of the moments
    assert (found >= qparams.qmin).all()
    assert (found <= qparams.qmax).all()
    if bits < 8:
        assert (found != qparams.quantize(weight, 1)).any()


def test_layers_that_share_a_weight_share_its_codes(tmp_path: Path) -> None:
    """Learned from what both read: not as either alone would have it."""
    x, z = samples(40)["x"], samples(40, seed=2)["x"] * np.linspace(0.1, 3, 8, dtype=np.float32)
    found = learned(normalize(block(SHARED)).model, {"x": x, "z": z}, 3, tmp_path)
    np.testing.assert_array_equal(found["y"], found["u"])
    alone = learned(normalize(block(SHARED)).model, {"x": x, "z": x}, 3, tmp_path)
    assert (found["y"] != alone["y"]).any()


def test_nothing_but_zeros_is_rounded_to_nearest(tmp_path: Path) -> None:
    text = "g (float[N, 6, 8] x) => (float[N, 6, 16] y) { y = MatMul (x, w1) }"
    found = learned(normalize(block(text)).model, {"x": np.zeros((4, 6, 8), np.float32)}, 4, tmp_path)["y"]
    weight = np.asarray(weights()["w1"])
    np.testing.assert_array_equal(found, WeightQParams.choose(weight, 1, 4, "max").quantize(weight, 1))


@pytest.mark.parametrize("exponent", [-120, -70, 66, 96])
def test_inputs_of_any_size(exponent: int, tmp_path: Path) -> None:
    """As of the same inputs in other units: their products would leave float32."""
    text = "g (float[N, 6, 8] x) => (float[N, 6, 16] y) { y = MatMul (x, w1) }"
    x = samples(40)["x"]
    expected = learned(normalize(block(text)).model, {"x": x}, 3, tmp_path)["y"]
    found = learned(normalize(block(text)).model, {"x": np.ldexp(x, exponent)}, 3, tmp_path)["y"]
    np.testing.assert_array_equal(found, expected)
    weight = np.asarray(weights()["w1"])
    assert (expected != WeightQParams.choose(weight, 1, 3, "max").quantize(weight, 1)).any()


def test_samples_of_sizes_far_apart(tmp_path: Path) -> None:
    """What a small one says is less than what the large ones' sums round off."""
    text = "g (float[N, 6, 8] x) => (float[N, 6, 16] y) { y = MatMul (x, w1) }"
    x = samples(40)["x"]
    x[1:] *= np.float32(1e20)
    found = learned(normalize(block(text)).model, {"x": x}, 3, tmp_path)["y"]
    without = learned(normalize(block(text)).model, {"x": x[1:]}, 3, tmp_path)["y"]
    np.testing.assert_array_equal(found, without)
