"""The torch models of a source on disk, for processes that did not build them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig

_CONFIGS, _WEIGHTS = "configs.json", "{}.pt"


def save_models(var: VAR, vqvae: VQVAE, folder: Path) -> None:
    """Write configurations and weights into an existing folder."""
    configs = {"var": dataclasses.asdict(var.config), "vqvae": dataclasses.asdict(vqvae.config)}
    (folder / _CONFIGS).write_text(json.dumps(configs, indent=1) + "\n", encoding="utf-8")
    for name, model in (("var", var), ("vqvae", vqvae)):
        torch.save(model.state_dict(), folder / _WEIGHTS.format(name))


def load_models(folder: Path) -> tuple[VAR, VQVAE]:
    """The models that `save_models` wrote, in eval mode; weights stay in the file until they are used."""
    configs = json.loads((folder / _CONFIGS).read_text(encoding="utf-8"))
    for config in configs.values():
        config |= {name: tuple(value) for name, value in config.items() if isinstance(value, list)}
    with torch.device("meta"):
        var, vqvae = VAR(VARConfig(**configs["var"])), VQVAE(VQVAEConfig(**configs["vqvae"]))
    for name, model in (("var", var), ("vqvae", vqvae)):
        model.load_state_dict(torch.load(folder / _WEIGHTS.format(name), mmap=True), assign=True)
        model.eval().requires_grad_(False)
    return var, vqvae


def digest(*models: VAR | VQVAE | Infinity | BSQVAE) -> str:
    """Eight hexadecimal digits that change with the configurations and the weights (their first values)."""
    found = hashlib.sha256(" ".join(str(model.config) for model in models).encode())
    for model in models:
        for tensor in model.state_dict().values():
            found.update(tensor.flatten()[:64].numpy().tobytes())
    return found.hexdigest()[:8]
