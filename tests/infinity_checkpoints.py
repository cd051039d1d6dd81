"""Tiny checkpoints of an Infinity, its VAE and its text encoder, as the official ones are laid out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from infinity_bundle import TEXT, tiny_vae

from nextscale.models.t5.checkpoint import SIZES as NAMES
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.random_weights import random_t5
from tests.goldens.infinity_parity import in_chunks, random_state
from tests.tiny_infinity import CONFIG

# Prompts have more tokens than the texts of other tests; pictures of 0.06M have 7 stages, those of 0.25M 10.
INFINITY = replace(CONFIG, max_text=64, num_levels=8)
PIECES = Path(__file__).parent / "goldens" / "small.model"


def save_infinity_checkpoints(folder: Path) -> None:
    """infinity.pth of two chunks, vae.pth, byt5/ and, with a sentencepiece model, flan-t5/."""
    torch.save(in_chunks(random_state(INFINITY), 1), folder / "infinity.pth")
    torch.save({"vae": tiny_vae().state_dict()}, folder / "vae.pth")
    save_text_encoder(folder / "byt5", TEXT)
    save_text_encoder(folder / "flan-t5", replace(TEXT, vocab_size=1008))
    shutil.copyfile(PIECES, folder / "flan-t5" / "spiece.model")


def save_text_encoder(folder: Path, config: T5Config) -> None:
    """As Hugging Face lays it out."""
    folder.mkdir()
    document = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-06}
    document |= {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    (folder / "config.json").write_text(json.dumps(document))
    state = {name: tensor.contiguous() for name, tensor in random_t5(config).state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
