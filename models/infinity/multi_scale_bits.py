"""Bits to latents and to the transformer's inputs (`autoregressive_infer_cfg` and `flip_requant` officially).

A bit stands for +-1/sqrt(c) in its channel of the latent; a latent is the sum over stages of these codes, resized to
the last stage. Where a token is a patch of 2 x 2 latents, its bit 4c + 2i + j is channel c of the latent (i, j) of the
patch. All resizing is bilinear, without antialiasing. How latents become bits is `bsq_vae.bits_of_features`.

Symbols: B images, l tokens of a stage, L of all stages, D bits of a token, c latent channels, H and W of the latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.models.infinity.schedules import Sides, Size


def codes_of_bits(bits: Tensor, size: Size, si: int) -> Tensor:
    """The codes of a stage at its own resolution, (2 bit - 1) / sqrt(c).

    Args:
        bits: [B, l, D], 0 or 1.
        size: of the pictures.
        si: index of the stage.
    Returns:
        float32 [B, c, h, w], twice the stage's height and width where patchified.
    Raises:
        ValueError: there is another number of tokens.
    """
    if bits.shape[1] != size.stage_tokens[si]:
        raise ValueError(f"stage {si} has {size.stage_tokens[si]} tokens, found bits of {bits.shape[1]}")
    maps = F.pixel_shuffle(_to_map(bits, size.stage_sizes[si]), size.patch)
    return (2 * maps.float() - 1) * maps.shape[1] ** -0.5


def contribution(bits: Tensor, size: Size, si: int) -> Tensor:
    """What a stage's bits [B, l, D] add to f_hat: float32 [B, c, H, W]."""
    return _resized(codes_of_bits(bits, size, si), size.latent_size)


def next_input(f_hat: Tensor, size: Size, si: int) -> Tensor:
    """The transformer's input at stage si >= 1: f_hat float32 [B, c, H, W] -> [B, l, D]."""
    return _to_tokens(F.pixel_unshuffle(_resized(f_hat, latent_stage_size(size, si)), size.patch))


def accumulate(bits: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """Bits of all stages to the latent and to the transformer's teacher-forced inputs.

    Args:
        bits: S of [B, l, D], 0 or 1.
        size: of the pictures.
    Returns:
        f_hat float32 [B, c, H, W] after the last stage, and the inputs of stages 1 .. S-1, float32 [B, L - 1, D].
    """
    f_hat = contribution(bits[0], size, 0)
    inputs = [f_hat.new_zeros(len(f_hat), 0, bits[0].shape[2])]
    for si in range(1, size.num_stages):
        inputs.append(next_input(f_hat, size, si))
        f_hat = f_hat + contribution(bits[si], size, si)
    return f_hat, torch.cat(inputs, dim=1)


def latent_stage_size(size: Size, si: int) -> Sides:
    """Height and width of a stage's codes."""
    height, width = size.stage_sizes[si]
    return height * size.patch, width * size.patch


def _resized(maps: Tensor, sides: Sides) -> Tensor:
    return F.interpolate(maps, size=sides, mode="bilinear", align_corners=False)


def _to_map(tokens: Tensor, sides: Sides) -> Tensor:
    """[B, l, D] -> [B, D, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, sides)


def _to_tokens(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, l, D]."""
    return maps.flatten(2).transpose(1, 2)
