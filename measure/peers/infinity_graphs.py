"""An Infinity exported with torch.onnx: what a user without nextscale would run.

Three graphs, as VAR's (`exported_graphs`): `condition` (all that the text decides, once a batch), `step`, `decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from nextscale.measure.peers.exported_graphs import Decode, cache_names, export_module
from nextscale.measure.peers.infinity_loop import InfinityHostWeights
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.rope import rope_tables
from nextscale.models.infinity.schedules import Sides, Size
from nextscale.models.infinity.transformer import Block, Infinity
from nextscale.models.transformer_parts import NORM_EPS, KVCache, modulated


class Condition(nn.Module):
    """Features [R, Lt, Ct] without padding to modulations, the first input, and keys and values of the text.

    Every block's modulation is [depth, 6, R, 1, C], the head's [2, R, 1, C], the first input [R, 1, C]; keys and values
    of each block are [R, H, Lt, d].
    """

    def __init__(self, infinity: Infinity) -> None:
        super().__init__()
        self.infinity = infinity

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        text = self.infinity.read_text(features, torch.ones_like(features[..., 0]))
        blocks = torch.stack([block.modulation(text.modulation) for block in _blocks(self.infinity)])
        head = self.infinity.head_nm.modulation(text.cond)
        pairs = [tensor for pair in zip(text.keys, text.values, strict=True) for tensor in pair]
        start = self.infinity.embed(text, None)
        return blocks.permute(0, 2, 1, 3).unsqueeze(3), head.transpose(0, 1).unsqueeze(2), start, *pairs


class Step(nn.Module):
    """A stage's input [R, l, C], its tables and what is carried to log-odds [R, l, D] and all keys and values."""

    def __init__(self, infinity: Infinity) -> None:
        super().__init__()
        self.infinity = infinity

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        cos: Tensor,
        sin: Tensor,
        blocks: Tensor,
        head: Tensor,
        text: Sequence[Tensor],
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        present: list[Tensor] = []
        for i, block in enumerate(_blocks(self.infinity)):
            if i in self.infinity.config.level_blocks:
                x = x + level
            gamma1, gamma2, scale1, scale2, shift1, shift2 = blocks[i].unbind(0)
            cache = KVCache(past[2 * i], past[2 * i + 1])
            x = x + block.sa(modulated(x, scale1, shift1), (cos, sin), None, cache) * gamma1
            x = x + block.ca(block.ca_norm(x), text[2 * i], text[2 * i + 1], None)
            x = x + block.ffn(modulated(x, scale2, shift2)) * gamma2
            assert cache.key is not None
            assert cache.value is not None
            present += [cache.key, cache.value]
        normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        return self.infinity.head(normed * (1 + head[0]) + head[1]), *present


def _blocks(infinity: Infinity) -> list[Block]:
    return [block for block in infinity.blocks if isinstance(block, Block)]


def export_graphs(infinity: Infinity, vae: BSQVAE, size: Size, folder: Path, log: Callable[[str], object]) -> None:
    """Write condition.onnx, step.onnx and decoder.onnx into an existing folder; all but the decoder beside weights."""
    config = infinity.config
    rows, tokens, past_tokens, images = Dim("rows"), Dim("tokens"), Dim("past_tokens"), Dim("images")
    text_tokens, height, width = Dim("text_tokens"), Dim("height"), Dim("width")
    head_shape, c = (2, config.num_heads, 5, config.head_dim), config.embed_dim
    text = [torch.zeros(head_shape) for _ in range(2 * config.depth)]
    past = [torch.zeros(head_shape) for _ in range(2 * config.depth)]
    log("exporting condition")
    export_module(
        Condition(infinity),
        (torch.zeros(2, 5, config.text_channels),),
        ({0: rows, 1: text_tokens},),
        ["features"],
        ["blocks", "head", "start", *cache_names(config.depth, "text")],
        folder / "condition.onnx",
    )
    log("exporting step")
    tables = (torch.zeros(c), torch.zeros(4, config.head_dim // 2), torch.zeros(4, config.head_dim // 2))
    modulations = (torch.zeros(config.depth, 6, 2, 1, c), torch.zeros(2, 2, 1, c))
    export_module(
        Step(infinity),
        (torch.zeros(2, 4, c), *tables, *modulations, text, past),
        (
            {0: rows, 1: tokens},
            None,
            {0: tokens},
            {0: tokens},
            {2: rows},
            {1: rows},
            [{0: rows, 2: text_tokens}] * len(text),
            [{0: rows, 2: past_tokens}] * len(past),
        ),
        [
            *("x", "level", "cos", "sin", "blocks", "head"),
            *cache_names(config.depth, "text"),
            *cache_names(config.depth, "past_key_values"),
        ],
        ["logits", *cache_names(config.depth, "present")],
        folder / "step.onnx",
    )
    log("exporting decoder")
    f_hat = torch.zeros(2, config.latent_channels, *size.latent_size)
    shapes = ({0: images, 2: height, 3: width},)
    export_module(Decode(vae), (f_hat,), shapes, ["f_hat"], ["pictures"], folder / "decoder.onnx")


@torch.no_grad()
def host_weights(infinity: Infinity, size: Size) -> InfinityHostWeights:
    """What the loop around every peer's engine needs, at one size, of which a token is one position of the latent."""
    cos, sin = rope_tables(size, infinity.config.head_dim, infinity.config.rope_mode)
    up = [_resizing(sides, size.latent_size) for sides in size.stage_sizes]
    down = [_resizing(size.latent_size, sides).T for sides in size.stage_sizes[1:]]
    tensors = {
        "cfg_uncond": infinity.cfg_uncond,
        "level": infinity.lvl_embed.weight[: size.num_stages],
        "word_weight": infinity.word_embed.weight.T,
        "word_bias": infinity.word_embed.bias,
        "cos": cos,
        "sin": sin,
        "up": torch.cat(up),
        "down": torch.cat(down),
    }
    return InfinityHostWeights(
        torch.tensor(size.stage_tokens).numpy(),
        torch.tensor(size.latent_size).numpy(),
        **{name: tensor.detach().float().contiguous().numpy() for name, tensor in tensors.items()},
    )


def _resizing(source: Sides, target: Sides) -> Tensor:
    """The bilinear resizing of maps as a matrix [h w of the source, h w of the target]."""
    count = source[0] * source[1]
    maps = torch.eye(count).view(count, 1, *source)
    return F.interpolate(maps, size=target, mode="bilinear", align_corners=False).flatten(1)
