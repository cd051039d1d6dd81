"""A transformer and the VAE that it learned from: loaded together, and what tells whether they belong together.

Shapes tell it but for VAEs of equal shapes, of which two are published: `infinity_vae_d32.pth` and
`infinity_vae_d32reg.pth`. Each makes and reads bits well by itself, and training makes half of the bits ones, so that
nothing in the VAE tells which it is; what the transformer expects of bits does (`bits_per_bit`).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from nextscale.models.infinity.checkpoint import load_infinity
from nextscale.models.infinity.reference import generate
from nextscale.models.infinity.rope import RopeMode
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae

TWIN_BITS = 32  # of a token, of the two releases of equal shapes
TEXT_TOKENS = 8  # of no text: any number of them is


def load_pair(
    path: str | Path,
    vae_path: str | Path,
    *,
    patchify: bool | None = None,
    rope_mode: RopeMode = 2,
    level_each_chunk: bool = False,
    weights: str | None = None,
    vae_weights: str | None = None,
) -> tuple[Infinity, BSQVAE]:
    """An Infinity and its VAE.

    Args:
        path, vae_path: checkpoints.
        patchify, rope_mode, level_each_chunk, weights: as `load_infinity` takes them.
        vae_weights: as `load_bsq_vae` takes its weights.
    Raises:
        CheckpointError: a file cannot be read or loaded, or the VAE's latents do not make the transformer's tokens.
    """
    infinity = load_infinity(
        path, patchify=patchify, rope_mode=rope_mode, level_each_chunk=level_each_chunk, weights=weights
    )
    vae = load_bsq_vae(vae_path, token_bits=infinity.config.token_bits, weights=vae_weights)
    ours, theirs = infinity.config.patch, vae.config.patch
    if ours != theirs:
        raise CheckpointError(
            f"{vae_path} has {vae.config.latent_channels} latent channels, so that tokens of {vae.config.token_bits} "
            f"bits are patches of {theirs} x {theirs}; {path} was to be loaded with patches of {ours} x {ours}"
        )
    return infinity, vae


def twins_warning(path: str | Path, vae_path: str | Path, config: BSQVAEConfig) -> str | None:
    """What to tell a user whose VAE may be the wrong one of two releases, in one line; None: its shapes tell it."""
    if config.token_bits != TWIN_BITS:
        return None
    return (
        f"{vae_path} has the shapes of both infinity_vae_d32.pth and infinity_vae_d32reg.pth, which do not tell which "
        f"it is; if {path} is the published 2B, give infinity_vae_d32reg.pth, or its pictures are garbled"
    )


@torch.no_grad()
def bits_per_bit(infinity: Infinity, vae: BSQVAE, images: Tensor, size: Size) -> float:
    """How surprising the VAE's bits of pictures are to the transformer without a text: -log2 p, the mean of all bits.

    A coin has 1. A transformer learned to be less surprised by bits of photographs from its own VAE; the bits of
    another VAE mean nothing to it, and what it expects with confidence is then wrong as often as right: more than 1.

    It tells nothing of pictures that are no photographs, nor of transformers that have not learned; nor does it tell
    apart two VAEs of which one was tuned a little further. What the published pairs have was not measured.

    Args:
        images: float32 [B, 3, H, W] in [-1, 1], of the size.
    """
    bits = vae.encode(images, size.stage_sizes)
    no_text = infinity.cfg_uncond[:TEXT_TOKENS].expand(len(images), -1, -1)
    found = generate(infinity, size, no_text, torch.zeros(bits.shape), bits, cfg_scale=1.0)
    log_odds = torch.cat(found.guided_log_odds, dim=1)
    return F.binary_cross_entropy_with_logits(log_odds, bits.float()).item() / math.log(2)
