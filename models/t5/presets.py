"""The official encoders by name: Flan-T5 and ByT5, from small to xxl."""

from __future__ import annotations

from nextscale.models._find_preset import find_preset
from nextscale.models.t5.encoder import T5Config

BYT5_VOCAB_SIZE = 384


def _byt5(embed_dim: int, hidden_dim: int, depth: int, num_heads: int) -> T5Config:
    return T5Config(BYT5_VOCAB_SIZE, embed_dim, depth, num_heads, hidden_dim=hidden_dim)


PRESETS = {
    "flan-t5-small": T5Config(embed_dim=512, depth=8, num_heads=6, hidden_dim=1024),
    "flan-t5-base": T5Config(embed_dim=768, depth=12, num_heads=12, hidden_dim=2048),
    "flan-t5-large": T5Config(embed_dim=1024, depth=24, num_heads=16, hidden_dim=2816),
    "flan-t5-xl": T5Config(),
    "flan-t5-xxl": T5Config(embed_dim=4096, num_heads=64, hidden_dim=10240),
    "byt5-small": _byt5(1472, 3584, 12, 6),
    "byt5-base": _byt5(1536, 3968, 18, 12),
    "byt5-large": _byt5(1536, 3840, 36, 16),
    "byt5-xl": _byt5(2560, 6720, 36, 32),
    "byt5-xxl": _byt5(4672, 12352, 36, 64),
}


def get_preset(name: str) -> T5Config:
    """The encoder called `name`.

    Raises:
        NextscaleError: there is none; the message suggests the nearest.
    """
    return find_preset(PRESETS, name, "text encoder")
