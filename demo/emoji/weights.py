"""The emoji model's files, as the loaders of `models` read them: `infinity.safetensors`, `vae.safetensors`, `text/`.

Each also says of which step it is, in its metadata, so that a run can go on from nothing but these files.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nextscale.demo.weights import save_tensors
from nextscale.models.infinity.checkpoint import HEAD
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.t5.checkpoint import CONFIG_FILE, SIZES
from nextscale.models.t5.encoder import T5Encoder

INFINITY, VAE, TEXT, JUDGE = "infinity.safetensors", "vae.safetensors", "text", "judge.safetensors"
TEXT_WEIGHTS = "model.safetensors"
STEP = "step"  # in the files' metadata


def save_module(model: nn.Module, path: Path, step: int) -> None:
    """A module's parameters as fp16, under their own names."""
    save_tensors(dict(model.named_parameters()), path, {STEP: str(step)})


def save_infinity(infinity: Infinity, path: Path, step: int) -> None:
    """A transformer as fp16, with two logits a bit, of which the first is 0, as the official release has them."""
    tensors: dict[str, Tensor] = dict(infinity.named_parameters())
    for name in HEAD:
        ones = tensors[name].detach()
        tensors[name] = torch.stack((torch.zeros_like(ones), ones), dim=1).flatten(0, 1)
    save_tensors(tensors, path, {STEP: str(step)})


def save_text(text: T5Encoder, folder: Path, step: int) -> None:
    """A text encoder as fp16, in a folder as Hugging Face lays it out."""
    folder.mkdir(exist_ok=True)
    document = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
    sizes = {theirs: getattr(text.config, ours) for ours, theirs in SIZES.items()}
    (folder / CONFIG_FILE).write_text(json.dumps(document | sizes, indent=1) + "\n", encoding="utf-8")
    save_module(text, folder / TEXT_WEIGHTS, step)


def saved_step(path: Path) -> int:
    """The training step of a file."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()[STEP])
