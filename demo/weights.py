"""The demo model's two weight files: fp16 safetensors with the official key names, as `models.var.checkpoint` reads."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE

PUBLISHED = Path("demo/nextscale-demo/nextscale_demo")  # from a checkout's root


def save_weights(model: VQVAE | VAR, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's parameters, atomically, and its configuration as metadata; buffers follow from the latter."""
    tensors = {name: p.detach().to("cpu", dtype).contiguous().clone() for name, p in model.named_parameters()}
    metadata = {"kind": type(model).__name__, "config": json.dumps(dataclasses.asdict(model.config))}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)
