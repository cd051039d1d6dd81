"""The VAR transformer: class label and coarser token maps in, logits of the next token map out.

Module names are those of the official release, so that its state dicts load unchanged.
Symbols: B rows, l tokens of a stage, L tokens of all stages, C width, H heads, d = C / H, V codebook entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.models.transformer_parts import FFN, MAX_SCALE_MUL, HeadNorm, KVCache, modulated
from nextscale.models.var.vqvae import PATCH_NUMS_256


@dataclass(frozen=True)
class VARConfig:
    """Everything that shapes a VAR; the defaults are those of `var_d16.pth`."""

    num_classes: int = 1000
    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    attn_l2_norm: bool = True
    shared_aln: bool = False
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    vocab_size: int = 4096
    z_channels: int = 32

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if len(self.patch_nums) < 2:
            raise ValueError(f"patch_nums needs at least two stages, found {self.patch_nums}")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def num_stages(self) -> int:
        return len(self.patch_nums)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all stages."""
        return sum(pn * pn for pn in self.patch_nums)

    @property
    def stage_begins(self) -> tuple[int, ...]:
        """Where each stage starts among the L tokens."""
        return tuple(sum(pn * pn for pn in self.patch_nums[:si]) for si in range(self.num_stages))


class SelfAttention(nn.Module):
    """softmax(q k) v with l2-normalised q and k, or plain; k has no bias."""

    zero_k_bias: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        c, self.num_heads, self.attn_l2_norm = config.embed_dim, config.num_heads, config.attn_l2_norm
        if config.attn_l2_norm:
            self.scale = 1.0
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), math.log(4.0)))
        else:
            self.scale = 0.25 / math.sqrt(config.head_dim)
        self.mat_qkv = nn.Linear(c, 3 * c, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(c))
        self.v_bias = nn.Parameter(torch.zeros(c))
        self.register_buffer("zero_k_bias", torch.zeros(c))
        self.proj = nn.Linear(c, c)

    def query_scale(self) -> Tensor:
        """What normalised queries are multiplied by, [1, H, 1, 1] (attn_l2_norm only)."""
        return self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp()

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        b, length, c = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(b, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.attn_l2_norm:
            q = (F.normalize(q, dim=-1) * self.query_scale()).to(v.dtype)
            k = F.normalize(k, dim=-1)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(b, length, c))


class Block(nn.Module):
    """Attention and feed-forward, each modulated by the class (adaLN-zero)."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        c, self.shared_aln = config.embed_dim, config.shared_aln
        self.attn = SelfAttention(config)
        self.ffn = FFN(config.embed_dim, config.hidden_dim)
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, c) / c**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))

    def modulation(self, cond: Tensor) -> Tensor:
        """gamma1, gamma2, scale1, scale2, shift1, shift2 as [B, 6, C].

        Args:
            cond: the class embedding [B, C], or the shared adaLN's output [B, 6, C] with shared_aln.
        """
        if self.shared_aln:
            return self.ada_gss[0] + cond
        return self.ada_lin(cond).unflatten(-1, (6, -1))

    def forward(self, x: Tensor, cond: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.modulation(cond).unsqueeze(1).unbind(2)
        x = x + self.attn(modulated(x, scale1, shift1), mask, cache) * gamma1
        return x + self.ffn(modulated(x, scale2, shift2)) * gamma2


def level_and_mask(patch_nums: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each token's stage, int64 [1, L], and the mask of teacher forcing, float32 [1, 1, L, L], 0 or -inf.

    A token sees its own stage and all earlier ones.
    """
    level = torch.cat([torch.full((pn * pn,), si) for si, pn in enumerate(patch_nums)])
    visible = level[:, None] >= level[None, :]
    return level[None], torch.where(visible, 0.0, -torch.inf)[None, None]


class VAR(nn.Module):
    """The transformer alone; its tokens' latents come from a VQVAE (`MultiScaleQuantizer.accumulate`)."""

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        c, num_tokens, first = config.embed_dim, config.num_tokens, config.patch_nums[0] ** 2
        self.word_embed = nn.Linear(config.z_channels, c)
        self.class_emb = nn.Embedding(config.num_classes + 1, c)
        self.pos_start = nn.Parameter(torch.zeros(1, first, c))
        self.pos_1LC = nn.Parameter(torch.zeros(1, num_tokens, c))
        self.lvl_embed = nn.Embedding(config.num_stages, c)
        self.shared_ada_lin: nn.Module = (
            nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c)) if config.shared_aln else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(config.embed_dim)
        self.head = nn.Linear(c, config.vocab_size)
        level, mask = level_and_mask(config.patch_nums)
        self.register_buffer("lvl_1L", level)
        self.register_buffer("attn_bias_for_masking", mask)

    def position(self) -> Tensor:
        """Level and position embeddings of all tokens, [1, L, C]."""
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Class labels int64 [B] to the class embedding [B, C] and what the blocks are modulated by."""
        embedding = self.class_emb(labels)
        if self.config.shared_aln:
            return embedding, self.shared_ada_lin(embedding).unflatten(-1, (6, -1))
        return embedding, embedding

    def embed(self, embedding: Tensor, inputs: Tensor | None, si: int) -> Tensor:
        """The transformer's input at stage `si`, [B, l, C].

        Args:
            embedding: the class embedding [B, C]; used at stage 0.
            inputs: float32 [B, l, Cvae] (`MultiScaleQuantizer.next_input`); used from stage 1 on.
        """
        begin, pn = self.config.stage_begins[si], self.config.patch_nums[si]
        x = embedding[:, None] + self.pos_start if inputs is None else self.word_embed(inputs)
        return x + self.position()[:, begin : begin + pn * pn]

    def stage_logits(self, x: Tensor, embedding: Tensor, cond: Tensor, caches: list[KVCache]) -> Tensor:
        """Logits of one stage, [B, l, V], given the earlier stages' keys and values, which it extends."""
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cond, None, cache)
        return self.head(self.head_nm(x, embedding))

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher-forced logits of all stages.

        Args:
            labels: int64 [B], in [0, num_classes]; num_classes is the null class.
            inputs: float32 [B, L - patch_nums[0]**2, Cvae] (`MultiScaleQuantizer.accumulate`).
        Returns:
            [B, L, V].
        """
        embedding, cond = self.condition(labels)
        start = embedding[:, None] + self.pos_start
        x = torch.cat((start, self.word_embed(inputs)), dim=1) + self.position()
        mask = self.attn_bias_for_masking.to(x.dtype)
        for block in self.blocks:
            x = block(x, cond, mask, None)
        return self.head(self.head_nm(x, embedding))
