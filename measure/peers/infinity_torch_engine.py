"""PyTorch as a peer of Infinity: the models of `nextscale.models.infinity` in bfloat16."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from nextscale.measure.peers.host_loop import Floats, Inputs
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from nextscale.models.infinity.transformer import Infinity, InfinityConfig
from nextscale.models.transformer_parts import KVCache

_CONFIGS, _WEIGHTS = "configs.json", "{}.pt"


class InfinityTorchEngine:
    """Autocast to bfloat16, with weights that were stored so (`save_bfloat16`)."""

    compiles = False

    def __init__(self, folder: Path, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self.versions = {"torch": str(torch.__version__)}
        self._infinity, vae = load_bfloat16(folder)
        self._decode = vae.to(memory_format=torch.channels_last).decode  # type: ignore[call-overload]

    @torch.inference_mode()
    def begin(self, inputs: Inputs) -> Inputs:
        features = torch.from_numpy(inputs["features"])
        self._caches = [KVCache() for _ in self._infinity.blocks]
        with _autocast():
            self._text = self._infinity.read_text(features, torch.ones_like(features[..., 0]))
            return {"start": self._infinity.embed(self._text, None).float().numpy()}

    @torch.inference_mode()
    def stage(self, inputs: Inputs) -> Floats:
        x, level, cos, sin = (torch.from_numpy(inputs[name]) for name in ("x", "level", "cos", "sin"))
        infinity = self._infinity
        with _autocast():
            for i, (block, cache) in enumerate(zip(infinity.blocks, self._caches, strict=True)):
                if i in infinity.config.level_blocks:
                    x = x + level
                x = block(x, self._text, i, (cos, sin), None, cache)
            log_odds: Floats = infinity.head(infinity.head_nm(x, self._text.cond)).float().numpy()
        return log_odds

    @torch.inference_mode()
    def decode(self, f_hat: Floats) -> Floats:
        with _autocast():
            pictures: Floats = self._decode(torch.from_numpy(f_hat)).float().numpy()
        return pictures


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def save_bfloat16(infinity: Infinity, vae: BSQVAE, folder: Path) -> None:
    """Write configurations and weights into an existing folder, those of linear layers and convolutions in bfloat16."""
    configs = {"infinity": dataclasses.asdict(infinity.config), "vae": dataclasses.asdict(vae.config)}
    (folder / _CONFIGS).write_text(json.dumps(configs, indent=1) + "\n", encoding="utf-8")
    for name, model in (("infinity", infinity), ("vae", vae)):
        state = model.state_dict()
        for prefix, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for part, _ in module.named_parameters(recurse=False):
                    state[f"{prefix}.{part}"] = state[f"{prefix}.{part}"].bfloat16()
        torch.save(state, folder / _WEIGHTS.format(name))


def load_bfloat16(folder: Path) -> tuple[Infinity, BSQVAE]:
    """The models that `save_bfloat16` wrote, in eval mode; weights stay in the file until they are used."""
    configs = json.loads((folder / _CONFIGS).read_text(encoding="utf-8"))
    for config in configs.values():
        config |= {name: tuple(value) for name, value in config.items() if isinstance(value, list)}
    with torch.device("meta"):
        infinity = Infinity(InfinityConfig(**configs["infinity"]))
        vae = BSQVAE(BSQVAEConfig(**configs["vae"]))
    for name, model in (("infinity", infinity), ("vae", vae)):
        model.load_state_dict(torch.load(folder / _WEIGHTS.format(name), mmap=True), assign=True)
        model.eval().requires_grad_(False)
    return infinity, vae
