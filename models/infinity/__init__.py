"""Infinity: the transformer that takes text and makes bits, its sizes, the official checkpoints, and layer facts."""

__all__ = [
    "checkpoint",
    "checkpoint_config",
    "multi_scale_bits",
    "presets",
    "reference",
    "rope",
    "schedules",
    "transformer",
]
