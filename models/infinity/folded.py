"""The linear layers of an Infinity as the stage graph has them: the start of the graph, and of any twin of it.

- q, k and v are rows of mat_qkv, and keys and values of the text rows of mat_kv.
- Of each head of self-attention, q and k have the first of all pairs of channels before the second ones. Scores stay
  what they are, and RoPE turns halves: x1 cos - x2 sin and x1 sin + x2 cos, with the tables of `rope` as they are.
- Cross-attention's 1/sqrt(d) is in q. The pool's constant query and its scale are in the weight that gives scores.
- Factors of an equalization multiply what reads the divided channels and divide what makes them.

Weights that change are made each time that they are asked for, so that no second model is in memory.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from nextscale.models._weight import Weight
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.layers import (
    HEAD_ADA_LIN,
    POOL,
    PROJECTED_TEXT,
    SHARED_ADA_LIN,
    TEXT_OUT,
    input_of,
)
from nextscale.models.infinity.transformer import Block, Infinity

# gamma1, gamma2, scale1, scale2, shift1, shift2 of a block, and scale, shift of the head: what is added to each.
BLOCK_ONES, HEAD_ONES = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0), (1.0, 0.0)
HEAD_FEEDS = ("head", "head")


class FoldedInfinity:
    """Weights and biases by the names of linear layers (`layers.linear_shapes`).

    Args:
        infinity: the model; its parameters are referenced.
        equalization: to fold in.
    """

    def __init__(self, infinity: Infinity, equalization: Equalization = NOT_EQUALIZED) -> None:
        self.infinity, self.equalization = infinity, equalization

    def weight(self, name: str) -> Weight:
        """[out, in]; of adaLN's layers as it is in the model (`modulation`)."""
        if name == f"{POOL}.scores":
            return self._pool_scores
        if self._makes(name) is None and input_of(name) not in self.equalization.factors and not _is_folded(name):
            return self._plain(name)
        return partial(self._folded, name)

    def bias(self, name: str) -> Tensor | None:
        """[out], or None of a layer without one; of adaLN's layers as it is in the model."""
        owner, part = self._attention(name)
        if owner is None or part == "proj":
            return self._rows(name, self._linear(name).bias.detach())
        if part in ("k", "scores"):
            return None
        if part == "v":
            return self._rows(name, owner.get_parameter("v_bias").detach())
        return self._rows(name, owner.get_parameter("q_bias" if name.endswith(".sa.q") else "mat_q.bias").detach())

    def modulation(self, name: str) -> tuple[Weight, Tensor]:
        """Weight and bias of one of adaLN's layers that makes 1 + scale instead of scale; the head's equalized.

        The shared one makes what all blocks have in common, which `gains` equalize for each.
        """
        layer, ones = self._linear(name), HEAD_ONES if name == HEAD_ADA_LIN else BLOCK_ONES
        weight = layer.weight.detach()
        bias = layer.bias.detach()
        bias = bias + torch.tensor(ones, device=bias.device).repeat_interleave(self.infinity.config.embed_dim)
        if name == SHARED_ADA_LIN or "head" not in self.equalization.factors:
            return weight, bias
        divide = self.equalization.divide_parts
        return partial(divide, HEAD_FEEDS, weight), divide(HEAD_FEEDS, bias)

    def block_modulations(self) -> Tensor:
        """What each block adds to the shared modulation: float32 [depth, 6 C]."""
        return torch.stack([self.block(i).ada_gss.detach().flatten() for i in range(self.infinity.config.depth)])

    def gains(self) -> Tensor | None:
        """What equalization makes of ones, for the modulation of each block: [depth, 6 C]; None without."""
        if not self.equalization.factors:
            return None
        ones = torch.ones_like(self.block(0).ada_gss.detach()).flatten()
        feeds = [(None, None, *(f"blocks.{i}.sa.qkv", f"blocks.{i}.ffn.fc1") * 2) for i in self._indices()]
        return torch.stack([self.equalization.divide_parts(names, ones) for names in feeds])

    def ca_norm(self, i: int) -> tuple[Tensor, Tensor]:
        """Weight and bias [C] of the norm before a block's cross-attention."""
        norm, name = self.block(i).ca_norm, f"blocks.{i}.ca.q"
        return self.equalization.divide(name, norm.weight.detach()), self.equalization.divide(name, norm.bias.detach())

    def query_scale(self, i: int) -> Tensor:
        """What a block's normalised queries are multiplied by, [1, H, 1, 1]."""
        return self.block(i).sa.query_scale().detach()

    def block(self, i: int) -> Block:
        """Block i of the torch model."""
        return cast(Block, self.infinity.blocks[i])

    def _indices(self) -> range:
        return range(self.infinity.config.depth)

    def _linear(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self.infinity.get_submodule(name))

    def _attention(self, name: str) -> tuple[nn.Module | None, str]:
        """The attention that a layer is part of, and which part; else None."""
        owner, _, part = name.rpartition(".")
        is_attention = owner.endswith((".sa", ".ca"))
        return (self.infinity.get_submodule(owner) if is_attention else None), part

    def _plain(self, name: str) -> Tensor:
        """The rows of the model's weight that this layer is."""
        owner, part = self._attention(name)
        if owner is None or part == "proj":
            return self._linear(name).weight.detach()
        if name.endswith(".sa." + part):
            return owner.get_parameter("mat_qkv.weight").detach().chunk(3)["qkv".index(part)]
        if part == "q":
            return owner.get_parameter("mat_q.weight").detach()
        return owner.get_parameter("mat_kv.weight").detach().chunk(2)["kv".index(part)]

    def _makes(self, name: str) -> str | None:
        """The input that this layer's rows make, if it is divided."""
        made = PROJECTED_TEXT if name == TEXT_OUT else f"{name.removesuffix('v')}proj" if name.endswith(".v") else None
        return made if made in self.equalization.factors else None

    def _rows(self, name: str, rows: Tensor) -> Tensor:
        """What makes a layer's result, [out, ...], in the graph's order and units."""
        config = self.infinity.config
        if name.endswith((".sa.q", ".sa.k")):
            return rows.view(config.num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
        if name.endswith(".ca.q"):
            return rows / math.sqrt(config.head_dim)
        made = self._makes(name)
        return rows if made is None else self.equalization.divide(made, rows)

    def _folded(self, name: str) -> Tensor:
        return self.equalization.multiply(input_of(name), self._rows(name, self._plain(name)))

    def _pool_scores(self) -> Tensor:
        """Scores of the pool's heads for a token of the normed text: [heads, Ct]."""
        pool = self.infinity.text_proj_for_sos.ca
        query = pool.mat_q.detach()[0]
        keys = pool.mat_kv.weight.detach().chunk(2)[0].unflatten(0, query.shape)
        return torch.einsum("hd,hdt->ht", query, keys) / math.sqrt(query.shape[1])


def _is_folded(name: str) -> bool:
    """Whether the graph's rows are not the model's own."""
    return name.endswith((".sa.q", ".sa.k", ".ca.q"))
