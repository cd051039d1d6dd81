"""VAR's graphs: one stage, and the VQVAE's encoder and decoder."""

__all__ = [
    "decoder_graph",
    "encoder_graph",
    "stage_graph",
]
