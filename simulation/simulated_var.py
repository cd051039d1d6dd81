"""A quantized VAR in torch: each linear layer and each product of attention computes what the recipe's codes stand for.

Two ways to run it agree: teacher-forced over all stages at once (`SimulatedVAR.forward`), and stage by stage with a
cache (`SimulatedVAR.stage_logits`).
Symbols: those of `simulated_model`, V codebook entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.transformer_parts import KVCache
from nextscale.models.var.folded import FoldedVAR
from nextscale.models.var.layers import HEAD_ADA_LIN, SHARED_ADA_LIN
from nextscale.models.var.transformer import VAR, Block
from nextscale.simulation.simulated_attention import Span
from nextscale.simulation.simulated_model import Run, SimulatedModel, by_head, norm


@dataclass(frozen=True)
class Condition:
    """What the class decides: the class embedding [R, C], and what modulates blocks, [R, C] or [R, 6, C]."""

    embedding: Tensor
    cond: Tensor


class SimulatedVAR(SimulatedModel):
    """`var` quantized as `recipe` says.

    Args:
        var: the model; referenced where its weights are not changed.
        equalization: as in the stage graph.
        recipe, ranges, shift_and_sum, codes: as `SimulatedModel` takes them.
    """

    def __init__(
        self,
        var: VAR,
        recipe: Recipe,
        *,
        ranges: Mapping[str, Range] | None = None,
        equalization: Equalization = NOT_EQUALIZED,
        shift_and_sum: ShiftAndSum | None = None,
        codes: Mapping[str, NDArray[np.int8]] | None = None,
    ) -> None:
        self.var, self.config, folded = var, var.config, FoldedVAR(var, equalization)
        super().__init__(
            folded.facts,
            lambda name: (folded.weight(name), folded.bias(name)),
            recipe,
            var.config.num_stages,
            var.class_emb.weight.device,
            ranges=ranges,
            equalization=equalization,
            shift_and_sum=shift_and_sum,
            codes=codes,
        )

    def condition(self, labels: Tensor) -> Condition:
        """Class labels int64 [B] to the embeddings of both rows of each image."""
        null = torch.full_like(labels, self.config.num_classes)
        embedding = F.embedding(torch.cat((labels, null)), self.var.class_emb.weight.detach())
        if not self.config.shared_aln:
            return Condition(embedding, embedding)
        return Condition(embedding, self._ada_lin(SHARED_ADA_LIN, embedding).unflatten(-1, (6, -1)))

    def _ada_lin(self, name: str, embedding: Tensor) -> Tensor:
        x = F.silu(embedding)[:, None]
        linear = self.linears[name]
        level = torch.zeros(1, dtype=torch.int64, device=x.device)
        return linear(linear.quantize_input(x, level, True))[:, 0]

    def modulation(self, i: int, condition: Condition) -> Sequence[Tensor]:
        """gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2 of block i, [R, 1, C] each, equalized."""
        if self.config.shared_aln:
            parts = cast(Block, self.var.blocks[i]).ada_gss.detach()[0] + condition.cond
        else:
            parts = self._ada_lin(f"blocks.{i}.ada_lin.1", condition.cond).unflatten(-1, (6, -1))
        gamma1, gamma2, scale1, scale2, shift1, shift2 = parts.unsqueeze(1).unbind(2)
        (scale1, shift1), (scale2, shift2) = (
            self.divided(f"blocks.{i}.{layer}", scale + 1, shift)
            for layer, scale, shift in (("attn.qkv", scale1, shift1), ("ffn.fc1", scale2, shift2))
        )
        return gamma1, gamma2, scale1, scale2, shift1, shift2

    def span(self, stages: Sequence[int] | None = None) -> Span:
        """The given stages, or all."""
        return Span.of([pn * pn for pn in self.config.patch_nums], self.device, stages)

    def embed(self, condition: Condition, inputs: Tensor | None, span: Span) -> Tensor:
        """The transformer's input [R, l, C]; inputs float32 [B, l, Cvae] are those of all stages but the first."""
        parts = []
        if span.first == 0:
            parts.append(condition.embedding[:, None] + self.var.pos_start.detach())
        if inputs is not None and inputs.shape[1]:
            level = span.own_level[-inputs.shape[1] :]
            parts.append(self.apply("word_embed", inputs, level, paired=False).repeat(2, 1, 1))
        return torch.cat(parts, dim=1) + self.var.position().detach()[:, span.past : len(span.level)]

    def attention_part(
        self, i: int, x: Tensor, condition: Condition, span: Span, cache: KVCache | None = None
    ) -> Tensor:
        """x [R, l, C] plus the attention of block i."""
        gamma1, _, scale1, _, shift1, _ = self.modulation(i, condition)
        name, attn = f"blocks.{i}.attn", cast(Block, self.var.blocks[i]).attn
        h = norm(x) * scale1 + shift1
        projected = self.apply_all([f"{name}.{part}" for part in "qkv"], h, span.own_level)
        q, k, v = (by_head(found, self.config.num_heads) for found in projected)
        if attn.attn_l2_norm:
            q, k = F.normalize(q, dim=-1) * attn.query_scale().detach(), F.normalize(k, dim=-1)
        self.watch_operands(f"{name}.mix", (q, k, v), [span.own_level] * 3)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = self.attentions[f"{name}.mix"](q, k, v, span).transpose(1, 2).flatten(2)
        return x + self.apply(f"{name}.proj", mixed, span.own_level) * gamma1

    def ffn_part(self, i: int, x: Tensor, condition: Condition, span: Span) -> Tensor:
        """x [R, l, C] plus the feed-forward part of block i."""
        _, gamma2, _, scale2, _, shift2 = self.modulation(i, condition)
        h = norm(x) * scale2 + shift2
        h = F.gelu(self.apply(f"blocks.{i}.ffn.fc1", h, span.own_level), approximate="tanh")
        return x + self.apply(f"blocks.{i}.ffn.fc2", h, span.own_level) * gamma2

    def head_input(self, x: Tensor, condition: Condition, span: Span, cfg_scale: float | None) -> Tensor:
        """What the head sees: guided rows [B, l, C], since guidance is mixed before it; without, all rows."""
        parts = self._ada_lin(HEAD_ADA_LIN, condition.embedding).unflatten(-1, (2, -1))
        scale, shift = parts.unsqueeze(1).unbind(2)
        scale, shift = self.divided("head", scale + 1, shift)
        h = norm(x) * scale + shift
        if cfg_scale is None:
            return h
        cond, uncond = h.chunk(2)
        t = (cfg_scale * span.own_level / (self.config.num_stages - 1))[:, None]
        return (1 + t) * cond - t * uncond

    def units(self, cfg_scale: float) -> dict[str, Run]:
        found: dict[str, Run] = {}
        for i in range(self.config.depth):
            found[f"blocks.{i}.attn"] = partial(_attention_unit, i)
            found[f"blocks.{i}.ffn"] = partial(_ffn_unit, i)
        return found | {"head": partial(_head_unit, cfg_scale)}

    def head(self, h: Tensor, span: Span, *, guided: bool = True) -> Tensor:
        """Logits of `head_input`, [.., l, C] -> [.., l, V]."""
        return self.apply("head", h, span.own_level, paired=not guided)

    def _transform(
        self, x: Tensor, condition: Condition, span: Span, cfg_scale: float | None, caches: Sequence[KVCache | None]
    ) -> Tensor:
        for i, cache in enumerate(caches):
            x = self.attention_part(i, x, condition, span, cache)
            x = self.ffn_part(i, x, condition, span)
        return self.head(self.head_input(x, condition, span, cfg_scale), span, guided=cfg_scale is not None)

    def forward(self, labels: Tensor, inputs: Tensor, cfg_scale: float | None) -> Tensor:
        """Teacher-forced logits of all stages.

        Args:
            labels: int64 [B], in [0, num_classes).
            inputs: float32 [B, L - patch_nums[0]**2, Cvae] (`MultiScaleQuantizer.accumulate`).
            cfg_scale: guidance is cfg_scale * si / (S - 1) at stage si; None: none.
        Returns:
            Guided logits float32 [B, L, V], or with None those of both rows, [2B, L, V].
        """
        span, condition = self.span(), self.condition(labels)
        x = self.embed(condition, inputs, span)
        return self._transform(x, condition, span, cfg_scale, [None] * self.config.depth)

    __call__ = forward

    def stage_logits(
        self, condition: Condition, inputs: Tensor | None, si: int, cfg_scale: float, caches: Sequence[KVCache]
    ) -> Tensor:
        """Guided logits of stage `si`, [B, l, V], given the earlier stages' keys and values, which it extends.

        Args:
            condition: of the labels (`condition`).
            inputs: float32 [B, l, Cvae] (`MultiScaleQuantizer.next_input`); None at stage 0.
            si: the stage.
            cfg_scale: guidance is cfg_scale * si / (S - 1).
            caches: one per block, empty at stage 0.
        """
        span = self.span([si])
        return self._transform(self.embed(condition, inputs, span), condition, span, cfg_scale, caches)


def _attention_unit(i: int, model: SimulatedVAR, x: Tensor, condition: Condition, span: Span) -> Tensor:
    return model.attention_part(i, x, condition, span)


def _ffn_unit(i: int, model: SimulatedVAR, x: Tensor, condition: Condition, span: Span) -> Tensor:
    return model.ffn_part(i, x, condition, span)


def _head_unit(cfg_scale: float, model: SimulatedVAR, x: Tensor, condition: Condition, span: Span) -> Tensor:
    return model.head(model.head_input(x, condition, span, cfg_scale), span)
