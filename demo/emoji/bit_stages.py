"""Multi-scale bits as training needs them: differentiable, with bits flipped on purpose, and with few kernels.

Resizing between a stage's map and the latent is a product with a constant matrix. Tests compare all of it with
`models.infinity.bsq_vae` and `models.infinity.multi_scale_bits`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.models.infinity.schedules import Sides, Size


@dataclass(frozen=True)
class Quantized:
    """Features as bits.

    Attributes:
        bits: float32 [B, L, d], 0 or 1: what the transformer shall say.
        inputs: float32 [B, L - l0, d], the transformer's, of all stages but the first.
        residuals: float32 [B, L, d], whose signs the bits are.
        f_hat: float32 [B, d, h, w], what the decoder gets; a constant to autograd.
    """

    bits: Tensor
    inputs: Tensor
    residuals: Tensor
    f_hat: Tensor


class BitStages(nn.Module):
    """The quantizer of pictures of one size, whose last stage is the latent."""

    down: Tensor  # [L, h w]: the latent's area average at each stage
    up: Tensor  # [h w, L]: a stage's codes at the latent's size
    following: Tensor  # [L, h w]: the latent as a stage's input

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.latent_size, self.tokens = size.latent_size, list(size.stage_tokens)
        latent = _one_hot_maps(size.latent_size)
        down, up, following = [], [], []
        for sides in size.stage_sizes:
            down.append(_resized(latent, sides, "area").mT)
            up.append(_resized(_one_hot_maps(sides), size.latent_size, "bilinear").mT)
            following.append(_resized(latent, sides, "bilinear").mT)
        self.register_buffer("down", torch.cat(down), persistent=False)
        self.register_buffer("up", torch.cat(up, dim=1), persistent=False)
        self.register_buffer("following", torch.cat(following), persistent=False)

    def forward(self, features: Tensor, flips: Tensor | None = None) -> Quantized:
        """Features float32 [B, d, h, w] to bits (`bsq_vae.bits_of_features`).

        Args:
            features: gradients reach the residuals.
            flips: bool [B, L, d]: the bits that are added, and seen by later stages, with the wrong sign, so that the
                transformer learns to correct itself (Infinity, Sec. 3.4); targets stay right.
        """
        target = features.flatten(2).mT
        total = torch.zeros_like(target)
        bits, inputs, residuals = [], [], []
        down, up, following = (
            self.down.split(self.tokens),
            self.up.split(self.tokens, 1),
            self.following.split(self.tokens),
        )
        wrong = [None] * len(self.tokens) if flips is None else flips.split(self.tokens, dim=1)
        for si, flipped in enumerate(wrong):
            if si:
                inputs.append(following[si] @ total)
            residual = down[si] @ (target - total)
            positive = residual > 0
            bits.append(positive)
            residuals.append(residual)
            sign = positive if flipped is None else positive ^ flipped
            total = total + up[si] @ ((2 * sign.float() - 1) * target.shape[2] ** -0.5)
        f_hat = total.mT.unflatten(2, self.latent_size).detach()
        return Quantized(torch.cat(bits, 1).float(), torch.cat(inputs, 1).detach(), torch.cat(residuals, 1), f_hat)


def bit_entropy(residuals: Tensor) -> Tensor:
    """How undecided a bit is, less how varied the bits of a channel are, in nats: -log 2 is best.

    Args:
        residuals: float32 [B, l, d] of one stage; a bit's probability is sigmoid(4 sqrt(d) residual).
    """
    p = torch.sigmoid(4 * residuals.shape[2] ** 0.5 * residuals).clamp(1e-4, 1 - 1e-4)
    return _entropy(p).mean() - _entropy(p.mean((0, 1))).mean()


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log())


def _one_hot_maps(sides: Sides) -> Tensor:
    """[h w, 1, h, w]: a map for each position, 1 there and 0 elsewhere."""
    return torch.eye(sides[0] * sides[1]).unflatten(1, (1, *sides))


def _resized(maps: Tensor, sides: Sides, mode: str) -> Tensor:
    """[n, 1, ...] -> [n, h w]; maps of these sides stay as they are."""
    return (maps if maps.shape[2:] == sides else F.interpolate(maps, size=sides, mode=mode)).flatten(1)
