"""Infinity's graphs: one stage, and its VAE's encoder and decoder."""

__all__ = [
    "decoder_graph",
    "encoder_graph",
    "stage_graph",
]
