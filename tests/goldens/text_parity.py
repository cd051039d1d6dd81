"""What the goldens of text are about: a small T5 with weights that need no storing, and difficult prompts."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.models.t5.encoder import T5Config, T5Encoder

FOLDER = Path(__file__).parent
FEATURES, TOKENS, SENTENCEPIECE = FOLDER / "text_encoder.npz", FOLDER / "text_tokens.json", FOLDER / "small.model"
# Heads that are together narrower than the model, as in Flan-T5-small.
CONFIG = T5Config(vocab_size=120, embed_dim=64, depth=3, num_heads=3, head_dim=16, hidden_dim=96)
# One token; distances that have a bucket each; those that share one; and the longest.
LENGTHS = (1, 9, 200, 512)
BATCH = 2
# A fifth of the features of every 37th token and of the last, to keep the goldens small.
KEPT_TOKENS, KEPT_FEATURES = 37, 5
DISTANCES = np.arange(-511, 512)

PROMPTS = (
    "A red fox sleeps under a snowy pine.",
    "x",
    "  leading and trailing  ",
    "two  spaces\tand a tab\nnew line\r\nend",
    "Ünïcödé façade",
    "U\u0308bermut e\u0301te\u0301",
    "o\u0302\u0301",
    "\ufb01ne ligature \ufb02ow",
    "\uff26\uff35\uff2c\uff2c width\uff01",
    "\u2026ellipsis \u00bd \u00b2 \u2116 \u2122 ",
    "\u65e5\u672c\u8a9e \u306e lighthouse",
    "fox \U0001f98a and \U0001f469\u200d\U0001f680",
    "a\u200bb",
    "zero\u00adwidth",
    "nul\x00char",
    "bell\x07 esc\x1b[0m",
    "\u2581fox \u2581 castle",
    "\u201cquotes\u201d and \u2018single\u2019",
    "it's 5 o'clock, f/2.8!",
    "UPPER lower MiXeD",
    "a" * 40,
    "\ufeffbegins with a mark",
    "non\u00a0breaking\u3000wide",
    "ta\u0338b \ufffd",
    "1234567890 3.14 1e-5",
    "C++ & C# / <b>html</b> {json: [1]}",
    "العربية עברית",
    "Zażółć gęślą jaźń",
    "naïve café\u2014dash\u2013dash",
    "fox\u2028castle",
    "\U0010ffff\ue000",
    "watercolour; high contrast - minimal (no flash), in São Paulo near Kraków",
)


def small_encoder() -> T5Encoder:
    """The encoder of the goldens."""
    model = T5Encoder(CONFIG)
    weights = {name: torch.from_numpy(_weight(name, tuple(t.shape))) for name, t in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def _weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Near 1 for norms; attention logits and their biases of about 1, so that what bends them shows."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.2 * normal).astype(np.float32)
    if name.endswith((".q.weight", ".k.weight")):
        return (normal / 16).astype(np.float32)
    embedded = name in ("shared.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    return (normal * (1.0 if embedded else shape[1] ** -0.5)).astype(np.float32)


def token_ids(length: int) -> NDArray[np.int64]:
    """[B, length]."""
    return np.random.RandomState(length).randint(0, CONFIG.vocab_size, (BATCH, length))


def condensed(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the goldens hold of [B, N, Ct]."""
    last = features.shape[1] - 1
    return features[:, sorted({*range(0, last, KEPT_TOKENS), last}), ::KEPT_FEATURES]
