from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextscale.models.transformer_parts import KVCache
from nextscale.models.var.presets import Preset
from nextscale.models.var.random_weights import random_models
from nextscale.models.var.reference import Generation, generate
from nextscale.models.var.transformer import VAR, SelfAttention, VARConfig
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.runtime._errors import NextscaleError

PATCH_NUMS = (1, 2, 3, 4, 6, 8)


def tiny(depth: int, **options: bool) -> Preset:
    var = VARConfig(depth=depth, embed_dim=128, num_heads=2, patch_nums=PATCH_NUMS, vocab_size=512, **options)
    vqvae = VQVAEConfig(ch=32, ch_mult=(1, 2, 4), patch_nums=PATCH_NUMS, vocab_size=512)
    return Preset(f"tiny-d{depth}", var, vqvae)


class AttentionObserver:
    """Relative entropy (0 one-hot, 1 uniform) of the attention of the last stage, a figure for each block."""

    def __init__(self, var: VAR) -> None:
        self.entropies: list[float] = []
        for module in var.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_pre_hook(self.observe)

    def observe(self, attn: SelfAttention, arguments: tuple[Tensor, None, KVCache]) -> None:
        x, _, cache = arguments
        if x.shape[1] != PATCH_NUMS[-1] ** 2:
            return
        bias = torch.cat((attn.q_bias, attn.zero_k_bias, attn.v_bias))
        qkv = torch.nn.functional.linear(x, attn.mat_qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        if attn.attn_l2_norm:
            q, k = (
                torch.nn.functional.normalize(q, dim=-1) * attn.query_scale(),
                torch.nn.functional.normalize(k, dim=-1),
            )
        assert cache.key is not None
        logits = attn.scale * q @ torch.cat((cache.key, k), dim=2).mT
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        self.entropies.append(entropy.mean().item() / math.log(logits.shape[-1]))


def generate_one(var: VAR, vqvae: VQVAE) -> Generation:
    uniforms = torch.rand(2, var.config.num_tokens, generator=torch.Generator().manual_seed(0))
    return generate(var, vqvae, torch.tensor([0, 7]), uniforms)


@pytest.mark.parametrize("options", [{}, {"attn_l2_norm": False}, {"shared_aln": True}], ids=str)
@pytest.mark.parametrize("depth", [2, 36])
def test_activations_attention_and_logits_stay_in_a_sane_range(depth: int, options: dict[str, bool]) -> None:
    var, vqvae = random_models(tiny(depth, **options), seed=0)
    stds: list[float] = []
    for block in var.blocks:
        block.register_forward_hook(lambda block, arguments, output: stds.append(output.std().item()))
    observer = AttentionObserver(var)
    result = generate_one(var, vqvae)

    assert len(stds) == depth * len(PATCH_NUMS)
    assert min(stds) > 0.7
    assert max(stds) < 4
    assert len(observer.entropies) == depth
    assert min(observer.entropies) > 0.5
    assert max(observer.entropies) < 0.97
    logit_stds = [logits.std(-1).mean().item() for logits in result.guided_logits]
    assert 2 < logit_stds[0] < 3
    assert max(logit_stds) < 6  # guidance amplifies
    assert 0.5 < result.f_hat.std() < 2


def test_pictures_span_the_range_without_saturating() -> None:
    var, vqvae = random_models(tiny(2), seed=0)
    images = generate_one(var, vqvae).images
    assert images.min() < 32
    assert images.max() > 223
    assert ((images == 0) | (images == 255)).float().mean() < 0.2


def test_the_encoder_uses_much_of_the_codebook() -> None:
    _, vqvae = random_models(tiny(1), seed=0)
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = torch.cat(vqvae.encode(pictures), dim=1)
    assert len(tokens.unique()) > 100


def test_the_seed_decides() -> None:
    (var, vqvae), (again, _), (other, _) = (random_models(tiny(1), seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in var.state_dict().items())
    assert not torch.equal(var.head.weight, other.head.weight)
    assert not any(p.requires_grad for model in (var, vqvae) for p in model.parameters())
    assert not var.training


def test_every_tensor_is_filled() -> None:
    """What stays unfilled after `to_empty` is arbitrary memory; poisoned memory shows it."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for options in ({}, {"attn_l2_norm": False}, {"shared_aln": True}):
            for model in random_models(tiny(1, **options)):
                bad = [name for name, t in model.state_dict().items() if "mask" not in name and not t.isfinite().all()]
                assert not bad
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_a_preset_is_found_by_name() -> None:
    with pytest.raises(NextscaleError, match="did you mean var-d16"):
        random_models("var-d1")
