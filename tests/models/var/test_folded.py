"""Folded layers compute what the torch model computes, and copy no weight that does not change."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tiny_model import tiny_models
from torch import Tensor

from nextscale.models._weight import Weight
from nextscale.models.equalization import Equalization
from nextscale.models.var.folded import FoldedVAR
from nextscale.models.var.layers import linear_shapes
from nextscale.models.var.transformer import VAR, Block

GENERATOR = torch.Generator().manual_seed(0)


def factors(var: VAR) -> dict[str, Tensor]:
    names = FoldedVAR(var).facts.equalizable()
    return {name: torch.rand(64, generator=GENERATOR) * 3 + 0.3 for name in names}


def tensor(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight()


@pytest.mark.parametrize("l2_norm", [True, False])
def test_unchanged_weights_are_the_models_own_memory(l2_norm: bool) -> None:
    var, _ = tiny_models(attn_l2_norm=l2_norm)
    folded = FoldedVAR(var)
    memory = {parameter.untyped_storage().data_ptr() for parameter in var.parameters()}
    for name, shape in linear_shapes(var.config).items():
        weight = folded.weight(name)
        assert isinstance(weight, Tensor) == (l2_norm or not name.endswith(".q"))
        assert tensor(weight).shape == shape
        if isinstance(weight, Tensor):
            assert weight.untyped_storage().data_ptr() in memory


def test_changed_weights_are_made_when_they_are_needed() -> None:
    var, _ = tiny_models()
    folded = FoldedVAR(var, Equalization(factors(var)))
    lazy = [name for name in linear_shapes(var.config) if not isinstance(folded.weight(name), Tensor)]
    parts = ("attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1")
    assert lazy == [*(f"blocks.{i}.{part}" for i in (0, 1) for part in parts), "head"]


@pytest.mark.parametrize("l2_norm", [True, False])
def test_q_k_and_v_of_divided_inputs(l2_norm: bool) -> None:
    """What reads x / f gives what mat_qkv gives of x: q times the scale, v in the units of proj's input."""
    with torch.no_grad():
        var, _ = tiny_models(attn_l2_norm=l2_norm)
        found = factors(var)
        folded, attn = FoldedVAR(var, Equalization(found)), cast(Block, var.blocks[1]).attn
        x = torch.randn(5, 64, generator=GENERATOR)
        bias = torch.cat((attn.q_bias, attn.zero_k_bias, attn.v_bias))
        expected = dict(zip("qkv", (x @ attn.mat_qkv.weight.T + bias).chunk(3, dim=-1), strict=True))
        expected["q"] = expected["q"] * attn.scale
        expected["v"] = expected["v"] / found["blocks.1.attn.proj"]
        for part, y in expected.items():
            name = f"blocks.1.attn.{part}"
            bias_of = folded.bias(name)
            made = (x / found["blocks.1.attn.qkv"]) @ tensor(folded.weight(name)).T
            made = made if bias_of is None else made + bias_of
            torch.testing.assert_close(made, y, rtol=1e-4, atol=1e-5)


def test_modulations_of_divided_inputs() -> None:
    """1 + scale and shift of what is divided, gamma as it was."""
    with torch.no_grad():
        var, _ = tiny_models()
        found = factors(var)
        embedding = torch.randn(5, 64, generator=GENERATOR)
        weight, bias = FoldedVAR(var, Equalization(found)).modulation("blocks.0.ada_lin.1")
        made = (torch.nn.functional.silu(embedding) @ tensor(weight).T + bias).unflatten(-1, (6, -1)).unbind(1)
        plain = cast(Block, var.blocks[0]).modulation(embedding).unbind(1)
        qkv, fc1 = found["blocks.0.attn.qkv"], found["blocks.0.ffn.fc1"]
        expected = (*plain[:2], (1 + plain[2]) / qkv, (1 + plain[3]) / fc1, plain[4] / qkv, plain[5] / fc1)
        for one, other in zip(made, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
