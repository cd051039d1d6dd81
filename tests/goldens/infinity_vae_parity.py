"""What the goldens of Infinity's VAE are about: small VAEs, their weights and pictures, and what is compared."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from tests.goldens.parity import GOLDENS, random_state

INFINITY_VAE = GOLDENS / "infinity_vae.npz"
OFFICIAL_MULTIPLIERS = (1, 2, 4, 4, 4)
SQUARE = ((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (12, 12), (16, 16))
TALL = ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12))  # h/w 1.333
BATCH = 2


@dataclass(frozen=True)
class VAECase:
    """A small VAE, and the stages that it encodes pictures for, in tokens."""

    name: str
    config: BSQVAEConfig
    stage_sizes: tuple[tuple[int, int], ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.stage_sizes[-1]
        side = self.config.downsample * self.config.patch
        return side * height, side * width


VAE_CASES = (
    VAECase("official_levels", BSQVAEConfig(8, 32, OFFICIAL_MULTIPLIERS), SQUARE[:3]),
    VAECase("square", BSQVAEConfig(16, 32, (1, 2)), SQUARE),
    VAECase("tall", BSQVAEConfig(16, 32, (1, 2)), TALL),
    VAECase("one_block", BSQVAEConfig(5, 64, (1, 1, 2), num_res_blocks=1), TALL[:4]),
    VAECase("patchified", BSQVAEConfig(4, 32, (1, 2), patch=2), TALL[:4]),
)


@cache
def vae_of(case: VAECase) -> BSQVAE:
    """A case's VAE with its random weights, not to be changed; features have the size of codes: all stages matter."""
    vae = BSQVAE(case.config)
    weights = random_state(vae)
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        weights[name] /= case.config.latent_channels**0.5
    vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False)


def vae_pictures(case: VAECase) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3], smooth at several scales, so that all stages matter."""
    rng = np.random.RandomState(zlib.crc32(case.name.encode()))
    height, width = case.image_size
    total = np.zeros((BATCH, height, width, 3))
    for size in (1, 2, 4, width):
        lines, columns = (np.arange(side) * size // side for side in (height, width))
        total += rng.uniform(-1, 1, (BATCH, size, size, 3))[:, lines[:, None], columns]
    return np.clip(127.5 + 60 * total, 0, 255).astype(np.uint8)


def as_numbers(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Float32 [B, 3, H, W] in [-1, 1], as the official code has them: x / 255, doubled, less 1."""
    numbers = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return numbers.add(numbers).add_(-1)
