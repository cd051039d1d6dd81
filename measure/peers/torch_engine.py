"""PyTorch as a peer: eager or compiled, float32 or bfloat16."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale.measure.peers.host_loop import Floats, Inputs
from nextscale.measure.peers.stored_models import load_models
from nextscale.models.transformer_parts import KVCache

# A compiled block has one form a stage and batch size.
FORMS = 128


class TorchEngine:
    """The models of `nextscale.export`, which compute what the official code computes.

    bfloat16 is autocast with the weights of linear layers and convolutions cast beforehand, which autocast would cast
    again at every call.
    """

    def __init__(self, folder: Path, threads: int, *, bfloat16: bool, compiled: bool) -> None:
        if threads:
            torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self.versions = {"torch": str(torch.__version__)}
        self.compiles = compiled
        self._bfloat16 = bfloat16
        self._var, vqvae = load_models(folder)
        self._blocks = list(self._var.blocks)
        self._decode = vqvae.to(memory_format=torch.channels_last).decode  # type: ignore[call-overload]
        self._head = self._head_logits
        if bfloat16:
            for module in (*self._var.modules(), *vqvae.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)
        if compiled:
            self._compile()

    def begin(self, inputs: Inputs) -> Inputs:
        self._caches = [KVCache() for _ in self._blocks]
        self._embedding = torch.from_numpy(inputs["embedding"])
        with self._context():
            self._cond = self._embedding
            if self._var.config.shared_aln:
                self._cond = self._var.shared_ada_lin(self._embedding).unflatten(-1, (6, -1))
        return {}

    def stage(self, inputs: Inputs) -> Floats:
        with torch.no_grad(), self._context():
            hidden = torch.from_numpy(inputs["x"])
            for block, cache in zip(self._blocks, self._caches, strict=True):
                hidden = block(hidden, self._cond, None, cache)
            logits: Floats = self._head(hidden, self._embedding).float().numpy()
        return logits

    def decode(self, f_hat: Floats) -> Floats:
        with torch.no_grad(), self._context():
            pictures: Floats = self._decode(torch.from_numpy(f_hat)).float().numpy()
        return pictures

    def _head_logits(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        logits: Tensor = self._var.head(self._var.head_nm(hidden, embedding))
        return logits

    def _context(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16)

    def _compile(self) -> None:
        """Compile a block once for all blocks, the head and the decoder, for each shape by itself."""
        require_compiler()
        torch._dynamo.config.recompile_limit = FORMS
        for block in self._blocks:
            block.compile(dynamic=False)
        self._head = torch.compile(self._head_logits, dynamic=False)
        self._decode = torch.compile(self._decode, dynamic=False)


def require_compiler() -> None:
    """Refuse torch.compile where there is no C++ compiler.

    Raises:
        RuntimeError: there is none; says what to install.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise RuntimeError(
            f"torch.compile needs a C++ compiler and found no {' or '.join(names)}: install g++, for example with "
            "apt-get install g++"
        )
