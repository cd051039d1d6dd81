"""Random weights that behave: models of any size for measuring speed without a checkpoint.

Every linear layer and convolution keeps the variance of what it reads; each residual branch adds 1/depth of variance,
so that activations neither explode nor collapse in deep models; attention logits have a standard deviation of about
1.5, so that attention is neither uniform nor one-hot; the head's logits have one of about 2.5.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from nextscale.models._random_fill import (
    ATTENTION_LOGIT_STD,
    GELU_POWER,
    HEAD_LOGIT_STD,
    MODULATION_STD,
    PIXEL_STD,
    SILU_POWER,
    Fill,
    fill_autoencoder,
)
from nextscale.models.transformer_parts import FFN
from nextscale.models.var.presets import Preset, get_preset
from nextscale.models.var.transformer import VAR, Block, SelfAttention, VARConfig, level_and_mask
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig


def random_models(preset: str | Preset, seed: int = 0) -> tuple[VAR, VQVAE]:
    """A preset's models with random weights, in eval mode; the same seed gives the same weights.

    Args:
        preset: a name in `presets.PRESETS`, or configurations of your own as a `Preset`.
        seed: of the weights.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    return random_var(preset.var, seed), random_vqvae(preset.vqvae, seed)


@torch.no_grad()
def random_var(config: VARConfig, seed: int = 0) -> VAR:
    """A transformer with random weights; made in place, so that it needs its own size in memory and no more."""
    with torch.device("meta"):
        var = VAR(config)
    var.to_empty(device="cpu")
    fill = Fill(seed)
    c = config.embed_dim
    var.lvl_1L, var.attn_bias_for_masking = level_and_mask(config.patch_nums)

    fill.linear(var.word_embed)
    fill.normal(var.class_emb.weight, 1.0)
    fill.normal(var.pos_start, 0.5)
    fill.normal(var.pos_1LC, 0.5)
    fill.normal(var.lvl_embed.weight, 0.5)
    if isinstance(var.shared_ada_lin, nn.Sequential):
        fill.linear(var.shared_ada_lin[1], MODULATION_STD, power=SILU_POWER)
        # The gammas come first; each branch's is about depth^-1/2.
        gammas = var.shared_ada_lin[1].get_parameter("weight")[: 2 * c]
        gammas.mul_(config.depth**-0.5)
    for module in var.modules():
        match module:
            case Block():
                _fill_modulation(fill, module, config)
            case SelfAttention():
                _fill_attention(fill, module, config)
            case FFN():
                fill.linear(module.fc1)
                fill.linear(module.fc2, power=GELU_POWER)
    fill.linear(var.head_nm.ada_lin[1], MODULATION_STD, power=SILU_POWER)
    fill.linear(var.head, HEAD_LOGIT_STD)
    return var.eval().requires_grad_(False)


def _fill_modulation(fill: Fill, block: Block, config: VARConfig) -> None:
    """gamma about depth^-1/2, scale and shift about 0."""
    c, gamma = config.embed_dim, config.depth**-0.5
    if config.shared_aln:
        fill.normal(block.ada_gss, MODULATION_STD)
        block.ada_gss[:, :, :2].add_(1).mul_(gamma)
    else:
        fill.linear(block.ada_lin[1], MODULATION_STD, power=SILU_POWER)
        weight, bias = (block.ada_lin[1].get_parameter(name) for name in ("weight", "bias"))
        weight[: 2 * c].mul_(gamma)
        bias[: 2 * c].add_(1).mul_(gamma)


def _fill_attention(fill: Fill, attn: SelfAttention, config: VARConfig) -> None:
    c = config.embed_dim
    fill.linear(attn.mat_qkv)
    fill.normal(attn.q_bias, 0.1)
    fill.normal(attn.v_bias, 0.1)
    attn.zero_k_bias.zero_()
    fill.linear(attn.proj)
    if config.attn_l2_norm:
        # The product of two random unit vectors has a standard deviation of d^-1/2.
        fill.normal(attn.scale_mul_1H11, 0.3, mean=math.log(ATTENTION_LOGIT_STD * config.head_dim**0.5))
    else:
        # That of two standard normal ones has d^1/2; the softmax scale is 0.25 d^-1/2.
        attn.mat_qkv.weight[: 2 * c].mul_((ATTENTION_LOGIT_STD / 0.25) ** 0.5)


@torch.no_grad()
def random_vqvae(config: VQVAEConfig, seed: int = 0) -> VQVAE:
    """A VQVAE with random weights."""
    with torch.device("meta"):
        vqvae = VQVAE(config)
    vqvae.to_empty(device="cpu")
    fill = Fill(seed)
    # f_hat is a sum over the stages, most of them smoothed by upsampling and phi: 2.5/S makes its variance about 1.
    fill.normal(vqvae.quantize.embedding.weight, (2.5 / len(config.patch_nums)) ** 0.5)
    vqvae.quantize.ema_vocab_hit_SV.zero_()
    for module in vqvae.quantize.quant_resi.modules():
        if isinstance(module, nn.Conv2d):
            fill.linear(module)
    fill.linear(vqvae.quant_conv)
    fill.linear(vqvae.post_quant_conv)
    fill_autoencoder(fill, vqvae.encoder, out_std=1.0)
    fill_autoencoder(fill, vqvae.decoder, out_std=PIXEL_STD)
    return vqvae.eval().requires_grad_(False)
