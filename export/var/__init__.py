"""VAR's graphs: one stage, and the VQVAE's decoder."""
