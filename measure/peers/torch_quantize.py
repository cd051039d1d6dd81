"""Quantize with torchao's PT2E flow and its X86 Inductor quantizer, as its documentation advises: ranges of activations
are found at run time in the transformer and calibrated in the decoder; weights have a scale for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export, save
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from nextscale.measure.peers.exported_graphs import Condition, Step
from nextscale.measure.peers.host_loop import HostWeights, generate
from nextscale.measure.peers.stored_models import load_models
from nextscale.measure.peers.torch_engine import TorchEngine
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._machine import describe_machine


class _Decode(nn.Module):
    """f_hat [B, Cvae, H, W] to pictures [B, 3, H, W] in [-1, 1]."""

    def __init__(self, vqvae: VQVAE) -> None:
        super().__init__()
        self.vqvae = vqvae

    def forward(self, f_hat: Tensor) -> Tensor:
        return self.vqvae.decode(f_hat)


@torch.no_grad()
def main(arguments: dict[str, Any]) -> None:
    """Write condition.pt2, step.pt2 and decoder.pt2.

    Args:
        arguments: "models", the folder of `save_models`; "host_weights", a file; "threads"; "images", how many to
            calibrate on; "out", an existing folder.
    """
    models, out = Path(arguments["models"]), Path(arguments["out"])
    weights = HostWeights.load(Path(arguments["host_weights"]))
    engine = TorchEngine(models, arguments["threads"], bfloat16=False, compiled=False)
    latents = [torch.from_numpy(generate(engine, weights, 1, seed).f_hat) for seed in range(arguments["images"])]
    del engine
    var, vqvae = load_models(models)
    config = var.config
    rows, tokens, past_tokens, images = Dim("rows"), Dim("tokens"), Dim("past_tokens"), Dim("images")
    embedding, x = torch.zeros(2, config.embed_dim), torch.zeros(2, 9, config.embed_dim)
    modulations = (torch.zeros(config.depth, 6, 2, 1, config.embed_dim), torch.zeros(2, 2, 1, config.embed_dim))
    past = [torch.zeros(2, config.num_heads, 5, config.head_dim) for _ in range(2 * config.depth)]
    _write(Condition(var), [(embedding,)], ({0: rows},), out / "condition.pt2", dynamic=True)
    shapes = ({0: rows, 1: tokens}, {2: rows}, {1: rows}, [{0: rows, 2: past_tokens}] * len(past))
    _write(Step(var), [(x, *modulations, past)], shapes, out / "step.pt2", dynamic=True)
    # Two pictures at a time: a size of 1 would be taken for a constant.
    pairs = [(torch.cat((latent, latent)),) for latent in latents]
    _write(_Decode(vqvae), pairs, ({0: images},), out / "decoder.pt2", dynamic=False)


def _write(
    module: nn.Module, inputs: Sequence[tuple[object, ...]], shapes: tuple[object, ...], path: Path, *, dynamic: bool
) -> None:
    """Quantize a module, calibrated on inputs, and store it; dynamic finds activations' ranges at run time."""
    # Strict, or nodes lack the function that they were: the quantizer finds layers by it that are no modules (q, k, v).
    graph = export(module.eval(), inputs[0], dynamic_shapes=shapes, strict=True).module()
    quantizer = X86InductorQuantizer()
    # Without VNNI, pairs of products saturate in 16 bits unless activations have 7.
    reduce_range = describe_machine().saturates
    quantizer.set_global(get_default_x86_inductor_quantization_config(is_dynamic=dynamic, reduce_range=reduce_range))
    prepared = prepare_pt2e(graph, quantizer)
    for item in inputs:
        prepared(*item)
    quantized = convert_pt2e(prepared)
    _drop_unused(quantized)
    save(export(quantized, inputs[0], dynamic_shapes=shapes), path)


def _drop_unused(graph: GraphModule) -> None:
    """Delete the float weights, which would be stored beside their integer forms."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        if name not in used:
            folder, _, own = name.rpartition(".")
            delattr(graph.get_submodule(folder), own)
