"""Generators in torch, a folder per family; checkpoints into models, and what a family says about its layers."""

__all__ = [
    "checkpoint_file",
    "checkpoint_weights",
    "sources",
    "t5",
    "var",
]
