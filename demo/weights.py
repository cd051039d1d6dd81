"""The demo model's two weight files: fp16 safetensors with the official key names, as `models.var.checkpoint` reads."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE

PUBLISHED = Path("demo/nextscale-demo/nextscale_demo")  # from a checkout's root


def save_weights(model: VQVAE | VAR, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's parameters, atomically, and its configuration as metadata; buffers follow from the latter."""
    metadata = {"kind": type(model).__name__, "config": json.dumps(dataclasses.asdict(model.config))}
    save_tensors(dict(model.named_parameters()), path, metadata, dtype=dtype)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str], *, dtype: torch.dtype = torch.float16
) -> None:
    """Write tensors as safetensors, atomically."""
    stored = {name: t.detach().to("cpu", dtype).contiguous().clone() for name, t in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(stored, partial, metadata=metadata)
    os.replace(partial, path)
