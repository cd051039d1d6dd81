"""VAR: the transformer, its VQVAE, the official checkpoints, and facts about its layers."""

__all__ = [
    "checkpoint",
    "checkpoint_config",
    "equalization",
    "folded",
    "layers",
    "multi_scale_quantizer",
    "presets",
    "random_weights",
    "reference",
    "relatives",
    "resampling",
    "sources",
    "transformer",
    "vqvae",
]
