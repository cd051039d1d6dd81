"""Infinity: its BSQ VAE, and the official checkpoints."""

__all__ = [
    "bsq_vae",
    "random_vae",
    "vae_checkpoint",
]
