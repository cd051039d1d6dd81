"""A BSQ VAE with random weights, for measuring speed without a checkpoint."""

from __future__ import annotations

import torch

from nextscale.models._random_fill import PIXEL_STD, Fill, fill_autoencoder
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig


def random_bsq_vae(config: BSQVAEConfig, seed: int = 0) -> BSQVAE:
    """In eval mode; the same seed gives the same weights.

    Features have the size of codes, 1/sqrt(d), which the decoder expects; pixels have a standard deviation of 0.5.
    """
    with torch.device("meta"):
        vae = BSQVAE(config)
    vae.to_empty(device="cpu")
    fill = Fill(seed)
    fill_autoencoder(fill, vae.encoder, out_std=config.latent_channels**-0.5)
    fill_autoencoder(fill, vae.decoder, out_std=PIXEL_STD)
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(config.latent_channels**0.5)
    return vae.eval().requires_grad_(False)
