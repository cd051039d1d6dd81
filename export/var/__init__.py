"""VAR's graphs: one stage, and the VQVAE's decoder."""

__all__ = [
    "decoder_graph",
    "stage_graph",
]
