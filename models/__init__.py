"""Generators in torch, a folder a family; checkpoints into models, and what a family says about its layers."""

__all__ = [
    "sources",
    "var",
]
