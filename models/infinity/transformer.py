"""The Infinity transformer: a text's features and coarser bits in, log-odds of the next scale's bits out.

Module names are those of the official release, but for `blocks`, which it divides into chunks, and the head, which here
gives one number a bit. Symbols: R rows, l tokens of a stage, L tokens of all stages, Lt tokens of text, C width, Ct
channels of text, H heads, d = C / H, D bits of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.models.infinity.rope import RopeMode, rope_table, rope_tables, rotate
from nextscale.models.infinity.schedules import Size
from nextscale.models.transformer_parts import FFN, MAX_SCALE_MUL, NORM_EPS, HeadNorm, KVCache, modulated


@dataclass(frozen=True)
class InfinityConfig:
    """Everything that shapes an Infinity; the defaults are those of `infinity_2b_reg.pth`.

    Attributes:
        token_bits: D; a token of patches has the bits of four latents.
        patchify: whether a token is a patch of 2 x 2 latents.
        text_channels: Ct.
        max_text: rows of cfg_uncond, the most tokens that a text can have.
        pool_heads: of the attention that makes one vector of the text.
        num_levels: rows of lvl_embed, the most stages that a size can have.
        level_blocks: the blocks before which the level embedding is added: 0 alone in all releases
            (`add_lvl_embeding_only_first_block`), else the first of each chunk.
        rope_mode: see `rope.RopeMode`.
    """

    depth: int = 32
    embed_dim: int = 2048
    num_heads: int = 16
    hidden_dim: int = 8192
    token_bits: int = 32
    patchify: bool = False
    text_channels: int = 2048
    max_text: int = 512
    pool_heads: int = 16
    num_levels: int = 15
    level_blocks: tuple[int, ...] = (0,)
    rope_mode: RopeMode = 2

    def __post_init__(self) -> None:
        for heads, name in ((self.num_heads, "num_heads"), (self.pool_heads, "pool_heads")):
            if heads < 1 or self.embed_dim % heads:
                raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of {name} {heads}")
        if self.head_dim % 4:
            raise ValueError(f"the width of a head must be a multiple of 4 for RoPE, found {self.head_dim}")
        if self.token_bits % self.patch**2:
            raise ValueError(f"a token of patches has a multiple of {self.patch**2} bits, found {self.token_bits}")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch(self) -> int:
        """The side of the patch of latents that is one token."""
        return 2 if self.patchify else 1

    @property
    def latent_channels(self) -> int:
        """Of the VAE."""
        return self.token_bits // self.patch**2


@dataclass(frozen=True)
class Text:
    """What a text gives the transformer, made once an image.

    Attributes:
        cond: its one vector, float32 [R, C]: the first stage's input, and what modulates.
        modulation: the shared part of the blocks' modulation, float32 [R, 6, C].
        keys, values: for cross-attention, by block, float32 [R, H, Lt, d].
        visible: whether a token belongs to the text, bool [R, 1, 1, Lt].
    """

    cond: Tensor
    modulation: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    visible: Tensor


class SelfAttention(nn.Module):
    """softmax(q k) v of l2-normalised, then rotated q and k; k has no bias and is cached rotated."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        c, self.num_heads = config.embed_dim, config.num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(c, 3 * c, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(c))
        self.v_bias = nn.Parameter(torch.zeros(c))
        self.proj = nn.Linear(c, c)

    def query_scale(self) -> Tensor:
        """What normalised queries are multiplied by, [1, H, 1, 1]."""
        return self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = rotate(F.normalize(q, dim=-1) * self.query_scale(), *rope)
        k = rotate(F.normalize(k, dim=-1), *rope)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """softmax(q k / sqrt(d)) v, with keys and values of the text's tokens."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        c, self.num_heads = config.embed_dim, config.num_heads
        self.mat_q = nn.Linear(c, c)
        self.mat_kv = nn.Linear(c, 2 * c, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(c))
        self.proj = nn.Linear(c, c)

    def keys_and_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H, Lt, d] each, of the projected text [R, Lt, C]."""
        return _keys_and_values(text, self.mat_kv, self.v_bias, self.num_heads)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        q = self.mat_q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, key, value, attn_mask=visible)
        return self.proj(out.transpose(1, 2).flatten(2))


class AttentivePool(nn.Module):
    """One vector of a text: attention with a learned query for each head."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        c, heads = config.embed_dim, config.pool_heads
        self.mat_q = nn.Parameter(torch.randn(1, heads, c // heads) / math.sqrt(3 * c))
        self.mat_kv = nn.Linear(config.text_channels, 2 * c, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(c))
        self.proj = nn.Linear(c, c)

    def forward(self, text: Tensor, visible: Tensor) -> Tensor:
        """The normed text [R, Lt, Ct], visible [R, 1, 1, Lt] -> [R, C]."""
        key, value = _keys_and_values(text, self.mat_kv, self.v_bias, self.mat_q.shape[1])
        q = self.mat_q[:, :, None].expand(text.shape[0], -1, -1, -1)
        return self.proj(F.scaled_dot_product_attention(q, key, value, attn_mask=visible).flatten(1))


def _keys_and_values(text: Tensor, layer: nn.Linear, v_bias: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    key, value = F.linear(text, layer.weight, torch.cat((torch.zeros_like(v_bias), v_bias))).chunk(2, dim=-1)
    k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (key, value))
    return k, v


class TextPool(nn.Module):
    """The official code's level of names around the pool."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ca = AttentivePool(config)

    def forward(self, text: Tensor, visible: Tensor) -> Tensor:
        pooled: Tensor = self.ca(text, visible)
        return pooled


class Block(nn.Module):
    """Self-attention, attention to the text, and feed-forward; the first and the last are modulated by the text."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        c = config.embed_dim
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config)
        self.ffn = FFN(c, config.hidden_dim)
        self.ca_norm = nn.LayerNorm(c, eps=NORM_EPS)
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, c) / c**0.5)

    def modulation(self, shared: Tensor) -> Tensor:
        """gamma1, gamma2, scale1, scale2, shift1, shift2 as [R, 6, C], of the shared part [R, 6, C]."""
        return self.ada_gss[0] + shared

    def forward(
        self, x: Tensor, text: Text, i: int, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        gammas_scales_shifts = self.modulation(text.modulation).unsqueeze(1).unbind(2)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = gammas_scales_shifts
        x = x + self.sa(modulated(x, scale1, shift1), rope, mask, cache) * gamma1
        x = x + self.ca(self.ca_norm(x), text.keys[i], text.values[i], text.visible)
        return x + self.ffn(modulated(x, scale2, shift2)) * gamma2


class Infinity(nn.Module):
    """The transformer alone; its bits become latents in `multi_scale_bits`."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        c = config.embed_dim
        self.cfg_uncond = nn.Parameter(torch.randn(config.max_text, config.text_channels) / config.text_channels**0.5)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, c))
        self.text_norm = nn.RMSNorm(config.text_channels, eps=NORM_EPS)
        self.text_proj_for_sos = TextPool(config)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_channels, c), nn.GELU(approximate="tanh"), nn.Linear(c, c)
        )
        self.lvl_embed = nn.Embedding(config.num_levels, c)
        self.word_embed = nn.Linear(config.token_bits, c)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(c)
        self.head = nn.Linear(c, config.token_bits)

    def read_text(self, features: Tensor, text_mask: Tensor) -> Text:
        """What texts give the transformer.

        Args:
            features: float32 [R, Lt, Ct], what the text encoder gives, not normed; finite also behind a text's end.
            text_mask: int64 or bool [R, Lt], 1 of a token, 0 behind the text's end; at least one token a row.
        """
        visible = text_mask.bool()[:, None, None]
        normed = self.text_norm(features)
        cond = self.text_proj_for_sos(normed, visible)
        projected = self.text_proj_for_ca(normed)
        # mypy knows a ModuleList's modules by their base class only.
        pairs = [block.ca.keys_and_values(projected) for block in self.blocks]  # type: ignore[operator, union-attr]
        keys, values = (tuple(pair[i] for pair in pairs) for i in range(2))
        return Text(cond, self.shared_ada_lin(cond).unflatten(-1, (6, -1)), keys, values, visible)

    def embed(self, text: Text, inputs: Tensor | None) -> Tensor:
        """A stage's input before its level embedding, [R, l, C].

        Args:
            text: its vector is the first stage's input.
            inputs: float32 [R, l, D] of later stages (`multi_scale_bits.next_input`); None at the first.
        """
        return text.cond[:, None] + self.pos_start if inputs is None else self.word_embed(inputs)

    def stage_log_odds(self, x: Tensor, text: Text, size: Size, si: int, caches: Sequence[KVCache]) -> Tensor:
        """Log-odds of the bits of one stage, [R, l, D], given the earlier stages' keys and values, which it extends.

        Args:
            x: of `embed`.
            text: of `read_text`.
            size: of the pictures.
            si: index of the stage.
            caches: one a block.
        """
        rope = rope_table(size.ratio, si, self.config.head_dim, self.config.rope_mode)
        return self._log_odds(x, text, self.lvl_embed.weight[si], rope, None, caches)

    def forward(self, features: Tensor, text_mask: Tensor, inputs: Tensor, size: Size) -> Tensor:
        """Teacher-forced log-odds of the bits of all stages.

        Args:
            features, text_mask: as in `read_text`.
            inputs: float32 [R, L - 1, D], those of all stages but the first (`multi_scale_bits.accumulate`).
            size: of the pictures.
        Returns:
            [R, L, D].
        """
        text = self.read_text(features, text_mask)
        stage = torch.repeat_interleave(torch.tensor(size.stage_tokens)).to(inputs.device)
        mask = torch.where(stage[:, None] >= stage, 0.0, -torch.inf)
        x = torch.cat((self.embed(text, None), self.embed(text, inputs)), dim=1)
        rope = rope_tables(size, self.config.head_dim, self.config.rope_mode)
        return self._log_odds(x, text, self.lvl_embed.weight[stage], rope, mask, [None] * self.config.depth)

    def _log_odds(
        self,
        x: Tensor,
        text: Text,
        level: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        caches: Sequence[KVCache | None],
    ) -> Tensor:
        cos, sin = rope
        rope = cos.to(x.device), sin.to(x.device)
        for i, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            if i in self.config.level_blocks:
                x = x + level
            x = block(x, text, i, rope, mask, cache)
        return self.head(self.head_nm(x, text.cond))
