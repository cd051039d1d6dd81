"""T5's encoder (Raffel et al., 2020) in the form of T5 v1.1, Flan-T5 and ByT5: token ids to features.

Module names are those of the official state dicts. Linear layers have no biases; scores are not scaled, since the
initial weights were. Weights may be of any floating dtype, as a checkpoint stores them: all is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


@dataclass(frozen=True)
class T5Config:
    """An encoder; the defaults are those of Flan-T5-XL.

    Attributes:
        vocab_size: rows of the table of embeddings; Flan-T5's are more than its tokenizer has pieces.
        embed_dim: Ct, the width.
        head_dim: of each of num_heads; their product need not be embed_dim.
        hidden_dim: of the gated feed-forward layer.
        num_buckets: of relative positions, half of them for tokens behind.
        max_distance: from which on all tokens share the last bucket.
    """

    vocab_size: int = 32128
    embed_dim: int = 2048
    depth: int = 24
    num_heads: int = 32
    head_dim: int = 64
    hidden_dim: int = 5120
    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        # A quarter of the buckets are single distances, the next quarter ranges up to max_distance.
        if self.num_buckets < 4 or self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"expected num_buckets in fours and max_distance above a quarter of them, "
                f"found {self.num_buckets} and {self.max_distance}"
            )

    @property
    def inner_dim(self) -> int:
        """Of all heads."""
        return self.num_heads * self.head_dim


def position_buckets(distance: Tensor, config: T5Config) -> Tensor:
    """The bucket of each relative position: int64 of any shape, in [0, num_buckets) (`_relative_position_bucket`).

    Distances up to n = num_buckets / 4 have buckets of their own, those up to max_distance share n more, whose widths
    grow with the logarithm. Keys behind the query have the second half of the buckets.

    Args:
        distance: int64, the key's position less the query's.
    """
    half, exact = config.num_buckets // 2, config.num_buckets // 4
    magnitude = distance.abs()
    # In float32, as the official code has it: where it rounds decides at the ends of a range.
    logarithm = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    far = (exact + (logarithm * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance > 0, half, 0) + torch.where(magnitude < exact, magnitude, far)


class Linear(nn.Module):
    """x @ weight.T in float32."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features_out, features_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.float())


class Table(nn.Module):
    """Rows by index, float32."""

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, features))

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight).float()


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.float() * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS))


class SelfAttention(nn.Module):
    """softmax(q k + bias) v; that of block 0 has the table of biases."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q, self.k, self.v = (Linear(config.embed_dim, config.inner_dim) for _ in range(3))
        self.o = Linear(config.inner_dim, config.embed_dim)
        if has_bias:
            self.relative_attention_bias = Table(config.num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, N, Ct], bias [1 or B, H, N, N] -> [B, N, Ct]."""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class GatedFFN(nn.Module):
    """wo(gelu(wi_0(x)) * wi_1(x)), tanh-GELU."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (Linear(config.embed_dim, config.hidden_dim) for _ in range(2))
        self.wo = Linear(config.hidden_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias)
        self.layer_norm = RMSNorm(config.embed_dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nn.Module):
    """x + ffn(norm(x))."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFFN(config)
        self.layer_norm = RMSNorm(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias), FeedForwardLayer(config)])

    @property
    def attention(self) -> AttentionLayer:
        return cast(AttentionLayer, self.layer[0])

    @property
    def feed_forward(self) -> FeedForwardLayer:
        return cast(FeedForwardLayer, self.layer[1])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x, bias))


class Stack(nn.Module):
    """The blocks and the norm behind them."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias=i == 0) for i in range(config.depth))
        self.final_layer_norm = RMSNorm(config.embed_dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5Encoder(nn.Module):
    """The encoder alone."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = Table(config.vocab_size, config.embed_dim)
        self.encoder = Stack(config)

    def block(self, i: int) -> Block:
        """Block i."""
        return cast(Block, self.encoder.block[i])

    def bias(self, distance: Tensor) -> Tensor:
        """What all blocks add to the scores at each relative position: int64 [...] -> float32 [H, ...]."""
        table = self.block(0).attention.SelfAttention.relative_attention_bias
        return table(position_buckets(distance, self.config)).movedim(-1, 0)

    def forward(self, token_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Features of texts, which see no padding.

        Args:
            token_ids: int64 [B, N], in [0, vocab_size), the end of the text among them.
            text_mask: int64 or bool [B, N], 1 of a token, 0 behind a text's end; None: all are tokens.
        Returns:
            float32 [B, N, Ct]; behind a text's end it means nothing.
        """
        position = torch.arange(token_ids.shape[1], device=token_ids.device)
        bias = self.bias(position[None, :] - position[:, None])[None]
        if text_mask is not None:
            bias = bias.masked_fill(~text_mask.bool()[:, None, None], -torch.inf)
        return self.encoder(self.shared(token_ids), bias)
