"""Infinity's image tokenizer: a VAE whose latents become bits, at several scales (BSQ; Infinity, Sec. 3.2).

Module names are those of the official release without its wrapper levels, which `vae_checkpoint` takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.models.autoencoder import Decoder, Encoder


@dataclass(frozen=True)
class BSQVAEConfig:
    """Everything that shapes a VAE; the defaults are those of `infinity_vae_d32reg.pth`.

    Attributes:
        latent_channels: d of the latent.
        ch, ch_mult: channels of the finest level, and of each level in units of it.
        num_res_blocks: of an encoder's level; a decoder's has one more.
        patch: a token has the bits of patch x patch positions of the latent: 2 in `infinity_vae_d56_f8_14_patchify`.
    """

    latent_channels: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    patch: int = 1

    @property
    def downsample(self) -> int:
        """Pixels a latent position, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def token_bits(self) -> int:
        """Bits a token."""
        return self.latent_channels * self.patch**2


class BSQVAE(nn.Module):
    """Images in [-1, 1] to bits and back."""

    def __init__(self, config: BSQVAEConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.ch, config.ch_mult, config.num_res_blocks, config.latent_channels)
        self.encoder = Encoder(*shape, using_sa=False, using_mid_sa=False)
        self.decoder = Decoder(*shape, using_sa=False, using_mid_sa=False)

    def features(self, images: Tensor) -> Tensor:
        """Images float32 [B, 3, H, W] in [-1, 1] to features before quantization, [B, d, h, w]."""
        features: Tensor = self.encoder(images)
        return features

    @torch.no_grad()
    def encode(self, images: Tensor, stage_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Images to the bits of their tokens.

        Args:
            images: float32 [B, 3, H, W] in [-1, 1].
            stage_sizes: height and width of each stage in tokens; the last one is the latent's over the patch.
        Returns:
            int64 [B, L, token_bits].
        Raises:
            ValueError: the images are of another size.
        """
        return bits_of_features(self.features(images), stage_sizes, self.config.patch)

    def decode(self, f_hat: Tensor) -> Tensor:
        """f_hat float32 [B, d, h, w] to images [B, 3, H, W], clipped to [-1, 1]."""
        return self.decoder(f_hat).clamp(-1, 1)


def bits_of_features(features: Tensor, stage_sizes: Sequence[tuple[int, int]], patch: int = 1) -> Tensor:
    """The signs of what the stages before leave over, stage by stage (`MultiScaleBSQ.forward` in the official code).

    A residual is averaged over the stage's areas; a bit is 1 where that is positive, and stands for +-1/sqrt(d), which
    bilinear upsampling brings back to the latent's size.

    Args:
        features: float32 [B, d, h, w]; not modified.
        stage_sizes: height and width of each stage in tokens.
        patch: positions of the latent along a token's side; bit p^2 c + p i + j is that of channel c at (i, j).
    Returns:
        int64 [B, L, d patch^2].
    Raises:
        ValueError: the last stage is not of the latent's size.
    """
    size = tuple(features.shape[2:])
    sizes = [(patch * height, patch * width) for height, width in stage_sizes]
    if sizes[-1] != size:
        raise ValueError(f"the latent must be {sizes[-1][0]} x {sizes[-1][1]}, found {list(size)}")
    code = features.shape[1] ** -0.5
    residual, bits = features, []
    for stage in sizes:
        z = residual if stage == size else F.interpolate(residual, size=stage, mode="area")
        positive = z > 0
        codes = torch.where(positive, code, -code)
        residual = residual - (codes if stage == size else F.interpolate(codes, size=size, mode="bilinear"))
        bits.append(F.pixel_unshuffle(positive.float(), patch).flatten(2).mT.long())
    return torch.cat(bits, dim=1)
