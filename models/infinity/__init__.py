"""Infinity: its transformer, which takes text and makes bits, its BSQ VAE, its sizes, and the official checkpoints."""

__all__ = [
    "bsq_vae",
    "checkpoint",
    "checkpoint_config",
    "equalization",
    "folded",
    "layers",
    "multi_scale_bits",
    "pair",
    "presets",
    "prompts",
    "random_vae",
    "random_weights",
    "reference",
    "rope",
    "schedules",
    "sources",
    "transformer",
    "vae_checkpoint",
]
