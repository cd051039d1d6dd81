"""Infinity's graphs: its VAE's encoder and decoder."""

__all__ = [
    "decoder_graph",
    "encoder_graph",
]
