"""The text encoder and the transformer as one module, for training: captions of unequal lengths, all stages at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.demo.emoji.configuration import EmojiConfig
from nextscale.demo.transformer_training import attend_by_stage, draw_small_weights
from nextscale.models.infinity.rope import rope_tables, rotate
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Block, Infinity, InfinityConfig, SelfAttention
from nextscale.models.t5.encoder import T5Encoder
from nextscale.models.t5.random_weights import random_t5
from nextscale.models.transformer_parts import KVCache

MASKED_STAGES = 5  # of seven; the last two, 77% of the tokens, see everything before them and need no mask


class StagewiseAttention(SelfAttention):
    """`SelfAttention` of all stages at once: the late ones attend without a mask, each in a product of its own."""

    def __init__(self, config: InfinityConfig, size: Size) -> None:
        super().__init__(config)
        ends = [*size.stage_begins[1:], size.num_tokens]
        self.bounds = [0, *ends[MASKED_STAGES - 1 :]]

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        assert mask is not None
        assert cache is None
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = rotate(F.normalize(q.float(), dim=-1) * self.query_scale(), *rope).to(v.dtype)
        k = rotate(F.normalize(k.float(), dim=-1), *rope).to(v.dtype)
        return self.proj(attend_by_stage(q, k, v, self.bounds, mask, 1.0))


class TrainedBlock(Block):
    """A block whose modulation is of the type of the text's, so that what passes through all blocks stays of it.

    That is bfloat16 on a GPU, where memory takes more of a step's time than products do.
    """

    def __init__(self, config: InfinityConfig, size: Size) -> None:
        super().__init__(config)
        self.sa = StagewiseAttention(config, size)

    def modulation(self, shared: Tensor) -> Tensor:
        return super().modulation(shared).to(shared.dtype)


class TrainedInfinity(Infinity):
    """`Infinity` with what `forward` makes anew at each call as buffers, for one size."""

    cos: Tensor
    sin: Tensor
    stage: Tensor
    mask: Tensor

    def __init__(self, config: InfinityConfig, size: Size) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(TrainedBlock(config, size) for _ in range(config.depth))
        cos, sin = rope_tables(size, config.head_dim, config.rope_mode)
        stage = torch.repeat_interleave(torch.tensor(size.stage_tokens))
        masked = stage[stage < MASKED_STAGES]
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("stage", stage, persistent=False)
        mask = torch.where(masked[:, None] >= masked, 0.0, -torch.inf)
        self.register_buffer("mask", mask, persistent=False)

    def log_odds(self, features: Tensor, text_mask: Tensor, inputs: Tensor) -> Tensor:
        """`Infinity.forward` of the size."""
        text = self.read_text(features, text_mask)
        x = torch.cat((self.embed(text, None), self.embed(text, inputs)), dim=1)
        level, rope, dtype = self.lvl_embed.weight[self.stage], (self.cos, self.sin), text.modulation.dtype
        return self._log_odds(x.to(dtype), text, level.to(dtype), rope, self.mask, [None] * self.config.depth)


class TextToBits(nn.Module):
    """Captions and coarser bits to log-odds."""

    def __init__(self, config: EmojiConfig, seed: int) -> None:
        """Weights that are random, but for the seed."""
        super().__init__()
        self.text: T5Encoder = random_t5(config.text, seed).train().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.infinity = TrainedInfinity(config.models.config, config.size)
            init_weights(self.infinity)

    def forward(self, token_ids: Tensor, dropped: Tensor, inputs: Tensor) -> Tensor:
        """Log-odds of all bits, [B, L, D].

        Args:
            token_ids: int64 [B, N], 0 behind a caption's end.
            dropped: bool [B], the captions that are replaced by nothing, for guidance.
            inputs: float32 [B, L - 1, D], of all stages but the first.
        """
        mask = token_ids > 0
        features = self.text(token_ids, mask)
        nothing = self.infinity.cfg_uncond[: token_ids.shape[1]].to(features.dtype)
        features = torch.where(dropped[:, None, None], nothing, features)
        return self.infinity.log_odds(features, mask, inputs)


def init_weights(infinity: Infinity) -> None:
    """Small weights and gates, so that an untrained model expects nothing (after the official `special_init`).

    Gates are less small than there, 0.1 for 5e-6 in its scripts, and a block's projections are those of three branches.
    """
    c, depth = infinity.config.embed_dim, infinity.config.depth
    std = math.sqrt(1 / c / 3)
    draw_small_weights(infinity, std)
    nn.init.trunc_normal_(infinity.pos_start, std=0.02)
    nn.init.trunc_normal_(infinity.lvl_embed.weight, std=0.02)
    nn.init.trunc_normal_(infinity.word_embed.weight, std=infinity.config.token_bits**-0.5)
    parameters = dict(infinity.named_parameters())
    with torch.no_grad():
        parameters["head.weight"].mul_(0.02)
        parameters["head_nm.ada_lin.1.weight"].mul_(0.5)
        for i in range(depth):
            for name in ("sa.proj", "ca.proj", "ffn.fc2"):
                parameters[f"blocks.{i}.{name}.weight"].div_(math.sqrt(3 * depth))
            gates, rest = parameters[f"blocks.{i}.ada_gss"].split((2, 4), dim=2)
            gates.mul_(0.1)
            rest.mul_(0.5)
