"""The linear layers of a VAR as the stage graph has them: the one start of the graph and of its torch simulation.

q, k and v are rows of mat_qkv; the scale of attention without l2 norm is in q; factors of an equalization multiply what
reads the divided channels and divide what makes them (`equalization`). Weights that change are made each time that they
are asked for, so that no second model is in memory.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from nextscale.models._weight import Weight
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.var.layers import HEAD_ADA_LIN, SHARED_ADA_LIN, facts_of
from nextscale.models.var.transformer import VAR, Block

# gamma1, gamma2, scale1, scale2, shift1, shift2 of a block, and scale, shift of the head: what is added to each.
BLOCK_ONES, HEAD_ONES = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0), (1.0, 0.0)


class FoldedVAR:
    """Weights and biases by the names of linear layers (`layers`).

    Args:
        var: the model; its parameters are referenced.
        equalization: to fold in.

    Attributes:
        facts: of the stage graph.
    """

    def __init__(self, var: VAR, equalization: Equalization = NOT_EQUALIZED) -> None:
        self.var, self.equalization, self.facts = var, equalization, facts_of(var)
        self._inputs = {layer.name: layer.input for layer in self.facts.layers}

    def weight(self, name: str) -> Weight:
        """[out, in]; of adaLN's layers as it is in the model (`modulation`)."""
        factors = self.equalization.factors
        block, part = self._attention(name)
        changed = self._inputs[name] in factors
        changed |= part == "q" and block is not None and not block.attn.attn_l2_norm
        changed |= part == "v" and f"{name.removesuffix('v')}proj" in factors
        return partial(self._folded, name) if changed else self._plain(name)

    def bias(self, name: str) -> Tensor | None:
        """[out], or None of a layer without one; of adaLN's layers as it is in the model."""
        block, part = self._attention(name)
        if block is None:
            return cast(nn.Linear, self.var.get_submodule(name)).bias.detach()
        if part == "k":
            return None
        return self._rows(name, (block.attn.q_bias if part == "q" else block.attn.v_bias).detach())

    def modulation(self, name: str) -> tuple[Weight, Tensor]:
        """Weight and bias of one of adaLN's layers that makes 1 + scale, equalized, instead of scale.

        A shared layer makes what all blocks have in common, which `gains` equalize for each.
        """
        layer = cast(nn.Linear, self.var.get_submodule(name))
        feeds, ones = self._feeds(name), HEAD_ONES if name == HEAD_ADA_LIN else BLOCK_ONES
        bias = layer.bias.detach() + torch.tensor(ones).repeat_interleave(self.var.config.embed_dim)
        weight: Weight = layer.weight.detach()
        if self.equalization.factors:
            weight = partial(self.equalization.divide_parts, feeds, layer.weight.detach())
        return weight, self.equalization.divide_parts(feeds, bias)

    def gains(self) -> Tensor | None:
        """What equalization makes of ones, for the modulation of each block: [depth, 6 C]; None without."""
        if not self.equalization.factors:
            return None
        ones = torch.ones(len(BLOCK_ONES) * self.var.config.embed_dim)
        names = [f"blocks.{i}.ada_lin.1" for i in range(self.var.config.depth)]
        return torch.stack([self.equalization.divide_parts(self._feeds(name), ones) for name in names])

    def _feeds(self, name: str) -> tuple[str | None, ...]:
        """The input that each part of a modulation scales or shifts, if it is one that can be divided."""
        if name == HEAD_ADA_LIN:
            return "head", "head"
        if name == SHARED_ADA_LIN:
            return (None,) * len(BLOCK_ONES)
        block = name.removesuffix(".ada_lin.1")
        return None, None, *(f"{block}.attn.qkv", f"{block}.ffn.fc1") * 2

    def _attention(self, name: str) -> tuple[Block | None, str]:
        """The block whose q, k or v this is, and which; else None."""
        prefix, _, part = name.rpartition(".attn.")
        if part not in ("q", "k", "v"):
            return None, part
        return cast(Block, self.var.get_submodule(prefix)), part

    def _plain(self, name: str) -> Tensor:
        block, part = self._attention(name)
        if block is None:
            return cast(nn.Linear, self.var.get_submodule(name)).weight.detach()
        return block.attn.mat_qkv.weight.detach().chunk(3)["qkv".index(part)]

    def _rows(self, name: str, rows: Tensor) -> Tensor:
        """What makes q or v, [C, ...], with attention's scale and the equalization of proj."""
        block, part = self._attention(name)
        if part == "q" and block is not None and not block.attn.attn_l2_norm:
            return rows * block.attn.scale
        return self.equalization.divide(f"{name.removesuffix('v')}proj", rows) if part == "v" else rows

    def _folded(self, name: str) -> Tensor:
        return self.equalization.multiply(self._inputs[name], self._rows(name, self._plain(name)))
