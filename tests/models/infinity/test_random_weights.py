from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.presets import Preset
from nextscale.models.infinity.random_weights import random_infinity, random_models
from nextscale.models.infinity.reference import Generation, generate
from nextscale.models.infinity.rope import rotate
from nextscale.models.infinity.schedules import make_size
from nextscale.models.infinity.transformer import CrossAttention, Infinity, InfinityConfig, SelfAttention
from nextscale.models.transformer_parts import KVCache
from nextscale.runtime._errors import NextscaleError

SIZE = make_size("0.06M", (1, 1))
CONFIG = InfinityConfig(
    depth=2, embed_dim=128, num_heads=2, hidden_dim=512, token_bits=16, text_channels=64, max_text=32, pool_heads=2
)
TINY = Preset("tiny", CONFIG, BSQVAEConfig(latent_channels=16, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1))


class AttentionObserver:
    """Relative entropy (0 one-hot, 1 uniform) of the attention of the last stage, a figure for each block."""

    def __init__(self, model: Infinity) -> None:
        self.to_self: list[float] = []
        self.to_text: list[float] = []
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_pre_hook(self.observe)
            if isinstance(module, CrossAttention):
                module.register_forward_pre_hook(self.observe_text)

    def observe(self, attn: SelfAttention, arguments: tuple[Tensor, tuple[Tensor, Tensor], None, KVCache]) -> None:
        x, rope, _, cache = arguments
        if x.shape[1] == SIZE.stage_tokens[-1]:
            bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
            qkv = F.linear(x, attn.mat_qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
            q, k, _ = (F.normalize(part, dim=-1) for part in qkv.permute(2, 0, 3, 1, 4))
            assert cache.key is not None
            keys = torch.cat((cache.key, rotate(k, *rope)), dim=2)
            self.to_self.append(relative_entropy(rotate(q * attn.query_scale(), *rope) @ keys.mT))

    def observe_text(self, attn: CrossAttention, arguments: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        x, key, _, _ = arguments
        if x.shape[1] == SIZE.stage_tokens[-1]:
            q = attn.mat_q(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            self.to_text.append(relative_entropy(q @ key.mT / math.sqrt(key.shape[-1])))


def relative_entropy(logits: Tensor) -> float:
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    return entropy.mean().item() / math.log(logits.shape[-1])


def generate_one(model: Infinity) -> Generation:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 20, CONFIG.text_channels, generator=generator)
    uniforms = torch.rand(2, SIZE.num_tokens, CONFIG.token_bits, generator=generator)
    return generate(model, SIZE, features, uniforms)


@pytest.mark.parametrize("depth", [2, 32])
def test_activations_attention_and_log_odds_stay_in_a_sane_range(depth: int) -> None:
    model = random_infinity(replace(CONFIG, depth=depth), seed=0)
    stds: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, arguments, output: stds.append(output.std().item()))
    observer = AttentionObserver(model)
    result = generate_one(model)

    assert len(stds) == depth * SIZE.num_stages
    assert min(stds) > 0.7
    assert max(stds) < 4
    for entropies in (observer.to_self, observer.to_text):
        assert len(entropies) == depth
        assert min(entropies) > 0.5
        assert max(entropies) < 0.97
    # Guidance amplifies by up to (3^2 + 2^2)^1/2.
    assert all(1.5 < log_odds.std() < 10 for log_odds in result.guided_log_odds)
    assert 0.3 < result.bits.float().mean() < 0.7


def test_a_presets_models_belong_together() -> None:
    model, vae = random_models(TINY, seed=0)
    pictures = vae.decode(generate_one(model).f_hat)
    assert pictures.shape == (2, 3, *SIZE.image_size)
    assert pictures.min() < -0.75
    assert pictures.max() > 0.75


def test_the_seed_decides() -> None:
    model, again, other = (random_infinity(CONFIG, seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model.head.weight, other.head.weight)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_every_tensor_is_filled() -> None:
    """What stays unfilled after `to_empty` is arbitrary memory; poisoned memory shows it."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        model = random_infinity(CONFIG)
        assert not [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_a_preset_is_found_by_name() -> None:
    with pytest.raises(NextscaleError, match="did you mean infinity-125m"):
        random_models("infinity-125")
