"""VAR: the transformer, its VQVAE, the official checkpoints, and facts about its layers."""
