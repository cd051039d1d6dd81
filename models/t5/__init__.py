"""T5's encoder, which makes features of text: Flan-T5 and ByT5 of all sizes, and their official checkpoints."""

__all__ = [
    "checkpoint",
    "encoder",
    "layers",
    "presets",
    "random_weights",
    "text_source",
]
