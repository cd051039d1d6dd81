"""Random weights that behave: models of any size for measuring speed without a checkpoint.

As VAR's (`models/var/random_weights.py`): layers keep the variance of what they read, each of a block's three branches
adds 1/depth of variance, attention is neither uniform nor one-hot, and log-odds have a standard deviation of about 2.5.
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
    SILU_POWER,
    Fill,
)
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.presets import Preset, get_preset
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.models.infinity.transformer import (
    AttentivePool,
    Block,
    CrossAttention,
    Infinity,
    InfinityConfig,
    SelfAttention,
)
from nextscale.models.transformer_parts import FFN

# Weighted means of a text's values have less variance than these.
POOLED_POWER = 0.5
# Sums of random codes, of which the coarse ones are smoothed, have about that of this many codes.
SUMMED_CODES = 3.0


def random_models(preset: str | Preset, seed: int = 0) -> tuple[Infinity, BSQVAE]:
    """A preset's models with random weights, in eval mode; the same seed gives the same weights.

    Args:
        preset: a name in `presets.PRESETS`, or configurations of your own as a `Preset`.
        seed: of the weights.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    return random_infinity(preset.config, seed), random_bsq_vae(preset.vae, seed)


@torch.no_grad()
def random_infinity(config: InfinityConfig, seed: int = 0) -> Infinity:
    """A transformer with random weights; made in place, so that it needs its own size in memory and no more."""
    with torch.device("meta"):
        infinity = Infinity(config)
    infinity.to_empty(device="cpu")
    fill = Fill(seed)

    fill.normal(infinity.cfg_uncond, 1.0)
    fill.normal(infinity.pos_start, 0.5)
    fill.normal(infinity.lvl_embed.weight, 0.5)
    fill.normal(infinity.text_norm.weight, 0.1, mean=1.0)
    fill.linear(infinity.text_proj_for_ca[0])
    fill.linear(infinity.text_proj_for_ca[2], power=GELU_POWER)
    fill.linear(infinity.word_embed, power=SUMMED_CODES / config.latent_channels)
    fill.linear(infinity.shared_ada_lin[1], MODULATION_STD, power=SILU_POWER)
    # The gammas come first; each branch's is about depth^-1/2.
    gammas = infinity.shared_ada_lin[1].get_parameter("weight")[: 2 * config.embed_dim]
    gammas.mul_(config.depth**-0.5)
    for module in infinity.modules():
        match module:
            case Block():
                fill.normal(module.ada_gss, MODULATION_STD)
                module.ada_gss[:, :, :2].add_(1).mul_(config.depth**-0.5)
                _fill_norm(fill, module.ca_norm)
            case SelfAttention():
                fill.linear(module.mat_qkv)
                fill.normal(module.q_bias, 0.1)
                # The product of two random unit vectors has a standard deviation of d^-1/2.
                mean = math.log(ATTENTION_LOGIT_STD * config.head_dim**0.5)
                fill.normal(module.scale_mul_1H11, 0.3, mean=mean)
                _fill_values(fill, module)
            case CrossAttention():
                fill.linear(module.mat_q, ATTENTION_LOGIT_STD)
                fill.linear(module.mat_kv)
                # There is no gamma.
                _fill_values(fill, module, config.depth**-0.5)
            case AttentivePool():
                fill.normal(module.mat_q, ATTENTION_LOGIT_STD)
                fill.linear(module.mat_kv)
                _fill_values(fill, module, power=POOLED_POWER)
            case FFN():
                fill.linear(module.fc1)
                fill.linear(module.fc2, power=GELU_POWER)
    fill.linear(infinity.head_nm.ada_lin[1], MODULATION_STD, power=SILU_POWER)
    fill.linear(infinity.head, HEAD_LOGIT_STD)
    return infinity.eval().requires_grad_(False)


def _fill_norm(fill: Fill, norm: nn.LayerNorm) -> None:
    fill.normal(norm.weight, 0.1, mean=1.0)
    fill.normal(norm.bias, 0.1)


def _fill_values(
    fill: Fill, attention: SelfAttention | CrossAttention | AttentivePool, std: float = 1.0, power: float = 1.0
) -> None:
    """The bias of values, and what reads their weighted means."""
    fill.normal(attention.v_bias, 0.1)
    fill.linear(attention.proj, std, power)
