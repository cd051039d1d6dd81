"""The demo model's two weight files: fp16 safetensors, official key names, the configuration as metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from nextscale.export.var import VAR, VARConfig
from nextscale.export.vqvae import VQVAE, VQVAEConfig

# Rebuilt from the configuration, so not stored.
DERIVED = ("zero_k_bias", "lvl_1L", "attn_bias_for_masking", "quantize.ema_vocab_hit_SV")


def save_weights(model: VQVAE | VAR, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's parameters, atomically."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(DERIVED)}
    tensors = {k: v.detach().to("cpu", dtype).contiguous().clone() for k, v in state.items()}
    metadata = {"kind": type(model).__name__, "config": json.dumps(dataclasses.asdict(model.config))}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A file's configuration, with tuples for JSON's lists, and its tensors in float32."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("kind") != kind:
            raise ValueError(f"{path} holds {metadata.get('kind', 'no model of ours')}, expected {kind}")
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}, state


def _fill(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith(DERIVED)]
    if missing or unexpected:
        raise ValueError(f"missing {missing[:10]}, unexpected {unexpected[:10]}")


def load_vqvae(path: Path) -> VQVAE:
    """The VQVAE of a file written by `save_weights`, in float32."""
    config, state = _load(path, "VQVAE")
    model = VQVAE(VQVAEConfig(**config))
    _fill(model, state)
    return model.eval()


def load_var(path: Path) -> VAR:
    """The VAR of a file written by `save_weights`, in float32."""
    config, state = _load(path, "VAR")
    model = VAR(VARConfig(**config))
    _fill(model, state)
    return model.eval()
