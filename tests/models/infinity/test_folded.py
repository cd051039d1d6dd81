"""Folded layers compute what the torch model computes, and copy no weight that does not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.models._weight import Weight
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.equalization import choose_equalization
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.layers import HEAD_ADA_LIN, POOL, SHARED_ADA_LIN, linear_shapes, stage_facts
from nextscale.models.infinity.rope import rope_tables
from tests.tiny_infinity import CONFIG, SIZE, tiny_infinity

FACTS = stage_facts(linear_shapes(CONFIG), [SIZE])
TOKENS, HEADS, C = 5, CONFIG.num_heads, CONFIG.embed_dim


def tensor(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight()


def random_equalization(seed: int) -> Equalization:
    generator = torch.Generator().manual_seed(seed)
    return Equalization({name: torch.rand(C, generator=generator) * 3 + 0.3 for name in FACTS.equalizable()})


def as_the_graph(folded: FoldedInfinity, features: Tensor, inputs: Tensor) -> Tensor:
    """Teacher-forced log-odds [R, L, D] by folded layers alone, with halves instead of pairs in RoPE."""
    infinity = folded.infinity

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, tensor(folded.weight(name)), folded.bias(name))

    def heads(x: Tensor, number: int = HEADS) -> Tensor:
        return x.unflatten(-1, (number, -1)).transpose(1, 2)

    def norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, (C,), eps=1e-6) * gain + shift

    cos, sin = rope_tables(SIZE, CONFIG.head_dim)

    def rotated(x: Tensor) -> Tensor:
        one, other = F.normalize(x, dim=-1).chunk(2, dim=-1)
        return torch.cat((one * cos - other * sin, one * sin + other * cos), dim=-1)

    normed = infinity.text_norm(features)
    pooled = linear(f"{POOL}.scores", normed).softmax(1).mT[:, :, None] @ heads(
        linear(f"{POOL}.v", normed), CONFIG.pool_heads
    )
    cond = linear(f"{POOL}.proj", pooled.flatten(1))
    text = linear("text_proj_for_ca.2", F.gelu(linear("text_proj_for_ca.0", normed), approximate="tanh"))

    def modulation(name: str) -> Tensor:
        weight, bias = folded.modulation(name)
        return F.linear(F.silu(cond), tensor(weight), bias)[:, None]

    blocks = modulation(SHARED_ADA_LIN) + folded.block_modulations()
    gains = folded.gains()
    blocks = (blocks if gains is None else blocks * gains).unflatten(2, (6, C))
    stage = torch.repeat_interleave(torch.tensor(SIZE.stage_tokens))
    mask = torch.where(stage[:, None] >= stage, 0.0, -torch.inf)
    x = torch.cat((cond[:, None] + infinity.pos_start, linear("word_embed", inputs)), dim=1)
    x = x + infinity.lvl_embed.weight[stage]
    for i in range(CONFIG.depth):
        gamma1, gamma2, scale1, scale2, shift1, shift2 = blocks[:, i, None].unbind(2)
        h = norm(x, scale1, shift1)
        q, k, v = (heads(linear(f"blocks.{i}.sa.{part}", h)) for part in "qkv")
        weights = (rotated(q) * folded.query_scale(i) @ rotated(k).mT + mask).softmax(-1)
        x = x + linear(f"blocks.{i}.sa.proj", (weights @ v).transpose(1, 2).flatten(2)) * gamma1
        q = heads(linear(f"blocks.{i}.ca.q", norm(x, *folded.ca_norm(i))))
        k, v = (heads(linear(f"blocks.{i}.ca.{part}", text)) for part in "kv")
        x = x + linear(f"blocks.{i}.ca.proj", ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = F.gelu(linear(f"blocks.{i}.ffn.fc1", norm(x, scale2, shift2)), approximate="tanh")
        x = x + linear(f"blocks.{i}.ffn.fc2", h) * gamma2
    return linear("head", norm(x, *modulation(HEAD_ADA_LIN).unflatten(2, (2, C)).unbind(2)))


@pytest.mark.parametrize("equalization", [NOT_EQUALIZED, random_equalization(0)], ids=["plain", "equalized"])
def test_the_graphs_layers_compute_what_the_model_computes(equalization: Equalization) -> None:
    infinity = tiny_infinity()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, TOKENS, CONFIG.text_channels, generator=generator)
    inputs = torch.randn(2, SIZE.num_tokens - 1, CONFIG.token_bits, generator=generator)
    expected = infinity(features, torch.ones(2, TOKENS), inputs, SIZE)
    found = as_the_graph(FoldedInfinity(infinity, equalization), features, inputs)
    # Each fold rounds once; the model's own two orders of summation differ by as much (test_transformer).
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)


def test_unchanged_weights_are_the_models_own_memory() -> None:
    infinity = tiny_infinity()
    folded = FoldedInfinity(infinity)
    memory = {parameter.untyped_storage().data_ptr() for parameter in infinity.parameters()}
    changed = []
    for name, shape in linear_shapes(CONFIG).items():
        weight = folded.weight(name)
        assert tensor(weight).shape == shape
        if isinstance(weight, Tensor):
            assert weight.untyped_storage().data_ptr() in memory
        else:
            changed.append(name)
    permuted_or_scaled = [f"blocks.{i}.{part}" for i in range(CONFIG.depth) for part in ("sa.q", "sa.k", "ca.q")]
    assert changed == [f"{POOL}.scores", *permuted_or_scaled]


def test_divided_inputs_change_what_reads_and_what_makes_them() -> None:
    infinity = tiny_infinity()
    folded = FoldedInfinity(infinity, Equalization({"blocks.1.ca.proj": torch.full((C,), 2.0)}))
    lazy = [name for name in linear_shapes(CONFIG) if not isinstance(folded.weight(name), Tensor)]
    plain = FoldedInfinity(infinity)
    before = [name for name in linear_shapes(CONFIG) if not isinstance(plain.weight(name), Tensor)]
    assert sorted(set(lazy) - set(before)) == ["blocks.1.ca.proj", "blocks.1.ca.v"]
    for name, factor in (("blocks.1.ca.proj", 2.0), ("blocks.1.ca.v", 0.5)):
        assert torch.equal(tensor(folded.weight(name)), tensor(plain.weight(name)) * factor)
    bias = folded.bias("blocks.1.ca.v")
    assert bias is not None
    assert torch.equal(bias, infinity.blocks[1].ca.v_bias / 2)


def test_keys_have_no_bias() -> None:
    folded = FoldedInfinity(tiny_infinity())
    none = [name for name in linear_shapes(CONFIG) if folded.bias(name) is None]
    keys = [f"blocks.{i}.{part}" for i in range(CONFIG.depth) for part in ("sa.k", "ca.k")]
    assert sorted(none) == sorted([f"{POOL}.scores", *keys])


def test_factors_meet_all_weights_that_read_the_input() -> None:
    infinity = tiny_infinity()
    for block in infinity.blocks:
        block.ca.mat_kv.weight.fill_(1.0)
    infinity.blocks[1].ca.mat_kv.weight[40, 3] = 16.0  # a row of v
    magnitudes = {"projected_text": torch.ones(C)}
    factors = choose_equalization(infinity, FACTS, magnitudes, alpha=0.5).factors["projected_text"]
    ratio = factors / factors[0]
    expected = torch.ones(C)
    expected[3] = 16**-0.5
    torch.testing.assert_close(ratio, expected)
