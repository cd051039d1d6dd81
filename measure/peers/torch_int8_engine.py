"""PyTorch's int8 as a peer: what `torch_quantize` wrote, compiled by Inductor."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
import torch._inductor.config
import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  registers the operators of the stored graphs
from torch import Tensor

from nextscale.measure.peers.host_loop import Floats, Inputs
from nextscale.measure.peers.torch_engine import FORMS, require_compiler


class TorchInt8Engine:
    """Keys and values stay in torch's tensors from one stage to the next.

    Inductor makes integer products of frozen weights alone, and keeps them packed with every form that it compiles: the
    transformer therefore has one for all stages but the first two, whose sizes of 0 and 1 Inductor takes for constants.

    Args:
        folder: of condition.pt2, step.pt2 and decoder.pt2.
        threads: 0 lets torch choose.
    """

    compiles = True

    def __init__(self, folder: Path, threads: int) -> None:
        require_compiler()
        if threads:
            torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = FORMS
        self.versions = {"torch": str(torch.__version__), "torchao": version("torchao")}
        condition, step, decoder = (
            torch.export.load(folder / f"{name}.pt2").module() for name in ("condition", "step", "decoder")
        )
        names = [node.name for node in step.graph.nodes if node.op == "placeholder"]
        meta = {node.name: node.meta["val"] for node in step.graph.nodes if node.op == "placeholder"}
        self._past = [tuple(meta[name].shape) for name in names if name.startswith("past")]
        self._condition = torch.compile(condition, dynamic=False)
        self._step = torch.compile(step, dynamic=True)
        self._decode = torch.compile(decoder, dynamic=False)

    @torch.no_grad()
    def begin(self, inputs: Inputs) -> Inputs:
        embedding = inputs["embedding"]
        self._modulations = self._condition(torch.from_numpy(embedding))
        self._cache = [torch.empty(len(embedding), heads, 0, width) for _, heads, _, width in self._past]
        return {}

    @torch.no_grad()
    def stage(self, inputs: Inputs) -> Floats:
        logits: Tensor
        logits, *self._cache = self._step(torch.from_numpy(inputs["x"]), *self._modulations, self._cache)
        array: Floats = logits.numpy()
        return array

    @torch.no_grad()
    def decode(self, f_hat: Floats) -> Floats:
        pictures: Floats = self._decode(torch.from_numpy(f_hat)).numpy()
        return pictures
