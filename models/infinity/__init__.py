"""Infinity: the transformer that takes text and makes bits, its sizes, the official checkpoints, and layer facts."""

__all__ = [
    "multi_scale_bits",
    "reference",
    "rope",
    "schedules",
    "transformer",
]
