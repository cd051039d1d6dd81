"""Generators in torch, a folder per family; checkpoints into models, and what a family says about its layers."""

__all__ = [
    "autoencoder",
    "bit_operations",
    "checkpoint_file",
    "checkpoint_model",
    "checkpoint_weights",
    "equalization",
    "infinity",
    "operations",
    "sources",
    "t5",
    "transformer_parts",
    "var",
]
