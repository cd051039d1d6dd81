from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tiny_model import L, tiny_models

from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.qparams import Range
from nextscale.models.equalization import LARGEST_FACTOR, Equalization
from nextscale.models.var.equalization import choose_equalization
from nextscale.models.var.layers import facts_of
from nextscale.models.var.transformer import VAR


def first_logits(var: VAR, quantizer: Any, equalization: Equalization) -> np.ndarray:
    """Guided logits of stage 0."""
    model = ir.to_proto(build_stage_graph(var, quantizer, equalization))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {
        "stage": np.array(0),
        "class_labels": np.array([3, 7]),
        "uniforms": np.full((2, L), 0.5, np.float32),
        "forced_tokens": np.full((2, L), -1),
        "cfg_scale": np.array(2, np.float32),
        "top_k": np.array(0),
        "top_p": np.array(0, np.float32),
    }
    for node in session.get_inputs():
        if node.name not in feeds:
            shape = [{"B": 2, "2B": 4, "T": 0, "M": 0, "N": 0}.get(size, size) for size in node.shape]
            feeds[node.name] = np.zeros(shape, np.float32)
    (logits,) = session.run(["logits"], feeds)
    return np.asarray(logits)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_any_factors_leave_the_function_unchanged(shared_aln: bool) -> None:
    with torch.no_grad():
        var, vqvae = tiny_models(shared_aln=shared_aln)
        generator = torch.Generator().manual_seed(0)
        factors = {name: torch.rand(64, generator=generator) * 3 + 0.3 for name in facts_of(var).equalizable()}
        plain = first_logits(var, vqvae.quantize, Equalization())
        equalized = first_logits(var, vqvae.quantize, Equalization(factors))
    # Each product of a factor and its inverse rounds once: float32's epsilon through two blocks, with room.
    assert np.abs(equalized - plain).max() <= 1e-5 * np.ptp(plain)


def test_a_channel_that_is_large_gets_a_large_factor() -> None:
    var, _ = tiny_models()
    magnitude = torch.ones(64)
    magnitude[5] = 100.0
    factors = choose_equalization(var, {"head": magnitude}, alpha=0.85).factors["head"]
    assert factors.argmax() == 5
    assert factors.log().mean().abs() < 1e-5  # a geometric mean of 1


def test_a_dead_channel_keeps_a_finite_factor() -> None:
    var, _ = tiny_models()
    magnitude = torch.ones(64)
    magnitude[0] = 0.0
    factors = choose_equalization(var, {"blocks.0.attn.qkv": magnitude}, alpha=0.85).factors["blocks.0.attn.qkv"]
    assert torch.isfinite(factors).all()
    assert (factors > 0).all()


def test_alpha_one_makes_all_channels_equal() -> None:
    var, _ = tiny_models()
    magnitude = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.1
    factors = choose_equalization(var, {"blocks.1.ffn.fc1": magnitude}, alpha=1.0).factors["blocks.1.ffn.fc1"]
    spread = magnitude / factors
    assert torch.allclose(spread, spread[0].expand(64), rtol=1e-5)


def test_the_equalized_range_is_that_of_the_divided_channels() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 50, 8)).astype(np.float32)  # stages, tokens, channels
    factors = rng.uniform(0.2, 5, size=8).astype(np.float32)
    found = Range(x.min(axis=1), x.max(axis=1)).equalized(factors)
    np.testing.assert_array_equal(found.minimum, (x / factors).min(axis=(1, 2)))
    np.testing.assert_array_equal(found.maximum, (x / factors).max(axis=(1, 2)))


def test_a_channel_that_was_all_but_silent_gets_no_extreme_factor() -> None:
    var, _ = tiny_models()
    magnitude = torch.ones(64)
    magnitude[3] = 1e-9
    factors = choose_equalization(var, {"head": magnitude}, alpha=0.85).factors["head"]
    assert factors.min() == 1 / LARGEST_FACTOR
