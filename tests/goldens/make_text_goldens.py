"""Make the goldens of text with transformers of release 4, the last with T5's own tokenizer over sentencepiece.

    pip install --target SITE transformers==4.57.6 sentencepiece
    PYTHONPATH=SITE python tests/goldens/make_text_goldens.py

Writes text_encoder.npz (T5EncoderModel) and text_tokens.json (T5Tokenizer with legacy=True, as the official Infinity
has it, on small.model; ByT5Tokenizer), and prints how far our encoder is. The tokenizer in Rust that Flan-T5's
tokenizer.json describes, which the official Infinity gets, is asked for the same ids.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from text_parity import (
    CONFIG,
    DISTANCES,
    FEATURES,
    LENGTHS,
    PROMPTS,
    SENTENCEPIECE,
    TOKENS,
    condensed,
    small_encoder,
    token_ids,
)
from tokenizers import Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention


def official_encoder() -> transformers.T5EncoderModel:
    """transformers' model with the weights of ours."""
    config = transformers.T5Config(
        vocab_size=CONFIG.vocab_size,
        d_model=CONFIG.embed_dim,
        d_kv=CONFIG.head_dim,
        d_ff=CONFIG.hidden_dim,
        num_layers=CONFIG.depth,
        num_heads=CONFIG.num_heads,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config).eval()
    missing, unexpected = model.load_state_dict(small_encoder().state_dict(), strict=False)
    assert (missing, unexpected) == (["encoder.embed_tokens.weight"], []), (missing, unexpected)
    return model


@torch.no_grad()
def make_features() -> None:
    official, ours, found = official_encoder(), small_encoder(), {}
    for length in LENGTHS:
        ids = torch.from_numpy(token_ids(length))
        features = official(input_ids=ids).last_hidden_state
        found[f"features.{length}"] = condensed(features.numpy())
        print(f"{length} tokens: we differ by {float((ours(ids) - features).abs().max()):.1e}")
    buckets = T5Attention._relative_position_bucket(torch.from_numpy(DISTANCES))
    np.savez_compressed(FEATURES, buckets=buckets.numpy().astype(np.uint8), **found)
    print(FEATURES)


def published_form(folder: Path) -> Tokenizer:
    """The vocabulary in the form of Flan-T5's tokenizer.json, which transformers no longer makes."""
    transformers.T5TokenizerFast(str(SENTENCEPIECE)).save_pretrained(folder)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (document["normalizer"],) = (n for n in document["normalizer"]["normalizers"] if n["type"] == "Precompiled")
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    return Tokenizer.from_str(json.dumps(document))


def make_tokens() -> None:
    legacy = transformers.T5Tokenizer(str(SENTENCEPIECE), legacy=True)
    of_bytes = transformers.ByT5Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        rust = published_form(Path(folder))
    cases = []
    for prompt in PROMPTS:
        ids = legacy(prompt).input_ids
        if rust.encode(prompt).ids != ids:
            print(f"the tokenizer in Rust differs: {prompt!r}")
        cases.append({"prompt": prompt, "sentencepiece": ids, "bytes": of_bytes(prompt).input_ids})
    lines = ",\n".join(json.dumps(case) for case in cases)
    TOKENS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(TOKENS, len(cases), "prompts, transformers", transformers.__version__)


if __name__ == "__main__":
    make_features()
    make_tokens()
