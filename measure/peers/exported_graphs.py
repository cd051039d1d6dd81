"""A model exported with torch.onnx: what a user without nextscale would run.

Three graphs: `condition` (adaLN's linear layers, once a batch, since they depend on the class alone), `step` (one stage
with the K/V cache as inputs and outputs), `decoder`.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from nextscale.models.autoencoder import AttnBlock
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.transformer_parts import NORM_EPS, KVCache
from nextscale.models.var.transformer import VAR, Block
from nextscale.models.var.vqvae import VQVAE

OPSET = 20


class Condition(nn.Module):
    """Class embeddings [B, C] to every block's modulation, [depth, 6, B, 1, C], and the head's, [2, B, 1, C]."""

    def __init__(self, var: VAR) -> None:
        super().__init__()
        self.var = var

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        embedding = embedding.unsqueeze(1)  # three dimensions: MatMul, which the quantizers take, and not Gemm
        cond = embedding
        if self.var.config.shared_aln:
            cond = self.var.shared_ada_lin(embedding).unflatten(-1, (6, -1))
        blocks = torch.stack([block.modulation(cond) for block in _blocks(self.var)])
        return blocks.permute(0, 3, 1, 2, 4), self.var.head_nm.modulation(embedding).permute(2, 0, 1, 3)


class Step(nn.Module):
    """x [B, l, C], modulations and past keys and values [B, H, T, d] to logits [B, l, V] and all keys and values."""

    def __init__(self, var: VAR) -> None:
        super().__init__()
        self.var = var

    def forward(self, x: Tensor, blocks: Tensor, head: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        present: list[Tensor] = []
        for i, block in enumerate(_blocks(self.var)):
            gamma1, gamma2, scale1, scale2, shift1, shift2 = blocks[i].unbind(0)
            cache = KVCache(past[2 * i], past[2 * i + 1])
            x = x + block.attn(_norm(x) * (1 + scale1) + shift1, None, cache) * gamma1
            x = x + block.ffn(_norm(x) * (1 + scale2) + shift2) * gamma2
            assert cache.key is not None
            assert cache.value is not None
            present += [cache.key, cache.value]
        return self.var.head(_norm(x) * (1 + head[0]) + head[1]), *present


class Decode(nn.Module):
    """f_hat [B, Cvae, H, W] to pictures [B, 3, H, W] in [-1, 1]."""

    def __init__(self, vae: VQVAE | BSQVAE) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)
        for module in list(self.vae.decoder.modules()):
            for name, child in module.named_children():
                if isinstance(child, AttnBlock):
                    setattr(module, name, PixelAttention(child))

    def forward(self, f_hat: Tensor) -> Tensor:
        return self.vae.decode(f_hat)


class PixelAttention(nn.Module):
    """What an AttnBlock computes, with the matrix products of the official code: the exporter asks for heads."""

    def __init__(self, block: AttnBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        _, c, height, width = x.shape
        q, k, v = self.block.qkv(self.block.norm(x)).flatten(2).split(c, dim=1)
        weights = (torch.bmm(q.transpose(1, 2), k) * c**-0.5).softmax(-1)
        h = torch.bmm(v, weights.transpose(1, 2))
        return x + self.block.proj_out(h.unflatten(2, (height, width)))


def _blocks(var: VAR) -> list[Block]:
    return [block for block in var.blocks if isinstance(block, Block)]


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def cache_names(depth: int, kind: str) -> list[str]:
    """Names of a K/V cache's tensors; kind is such as "past_key_values" or "present"."""
    return [f"{kind}.{i}.{part}" for i in range(depth) for part in ("key", "value")]


def export_graphs(var: VAR, vqvae: VQVAE, folder: Path, log: Callable[[str], object]) -> None:
    """Write condition.onnx, step.onnx and decoder.onnx into an existing folder; all but the decoder beside weights."""
    config = var.config
    rows, tokens, past_tokens, images = Dim("rows"), Dim("tokens"), Dim("past_tokens"), Dim("images")
    pn, side = config.patch_nums[-2:]
    cache = torch.zeros(2, config.num_heads, pn * pn, config.head_dim)
    caches = [cache.clone() for _ in range(2 * config.depth)]
    embedding, x = torch.zeros(2, config.embed_dim), torch.zeros(2, 4, config.embed_dim)
    modulations = (torch.zeros(config.depth, 6, 2, 1, config.embed_dim), torch.zeros(2, 2, 1, config.embed_dim))
    log("exporting condition")
    export_module(
        Condition(var), (embedding,), ({0: rows},), ["embedding"], ["blocks", "head"], folder / "condition.onnx"
    )
    log("exporting step")
    export_module(
        Step(var),
        (x, *modulations, caches),
        ({0: rows, 1: tokens}, {2: rows}, {1: rows}, [{0: rows, 2: past_tokens}] * len(caches)),
        ["x", "blocks", "head", *cache_names(config.depth, "past_key_values")],
        ["logits", *cache_names(config.depth, "present")],
        folder / "step.onnx",
    )
    log("exporting decoder")
    f_hat = torch.zeros(2, config.z_channels, side, side)
    export_module(Decode(vqvae), (f_hat,), ({0: images},), ["f_hat"], ["pictures"], folder / "decoder.onnx")


def export_module(
    module: nn.Module,
    inputs: tuple[object, ...],
    shapes: tuple[object, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    path: Path,
) -> None:
    """Export a module; shapes are those of its inputs, as torch.onnx.export takes dynamic ones."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                inputs,
                path,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=path.stem != "decoder",  # ONNX Runtime's preprocessing wants it whole
                verbose=False,
            )
    finally:
        logger.setLevel(level)
