"""A quantized Infinity in torch, teacher-forced: what the recipe's codes stand for, as in the stage graph.

Symbols: those of `simulated_model`; Lt tokens of text, D bits of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models._weight import Weight
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.layers import (
    HEAD_ADA_LIN,
    SHARED_ADA_LIN,
    TEXT_IN,
    TEXT_OUT,
    linear_shapes,
    stage_facts,
)
from nextscale.models.infinity.rope import rope_tables
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.transformer import Infinity
from nextscale.models.transformer_parts import NORM_EPS
from nextscale.simulation.simulated_attention import Span
from nextscale.simulation.simulated_model import Run, SimulatedModel, by_head, norm


@dataclass(frozen=True)
class TextCondition:
    """What texts decide.

    Attributes:
        start: the first stage's input before its level embedding, [R, 1, C].
        modulation: of all blocks, 1 + scale for scale, before what each block adds: [R, 6 C].
        head: 1 + scale and shift of the head, [R, 2, C].
        projected: what keys and values of cross-attention read, [R, Lt, C].
        visible: which of its tokens are the row's, bool [R, 1, 1, Lt].
    """

    start: Tensor
    modulation: Tensor
    head: Tensor
    projected: Tensor
    visible: Tensor


@dataclass(frozen=True)
class SizeSpan:
    """All stages of a size: `span`, and cos and sin of its tokens' angles, [l, d/2]."""

    span: Span
    rope: tuple[Tensor, Tensor]


class SimulatedInfinity(SimulatedModel):
    """`infinity` quantized as `recipe` says.

    Args:
        infinity: the model; referenced where its weights are not changed.
        sizes: those of the stage graph.
        equalization: as in the stage graph.
        recipe, ranges, shift_and_sum, codes: as `SimulatedModel` takes them.
    """

    def __init__(
        self,
        infinity: Infinity,
        sizes: Sequence[Size],
        recipe: Recipe,
        *,
        ranges: Mapping[str, Range] | None = None,
        equalization: Equalization = NOT_EQUALIZED,
        shift_and_sum: ShiftAndSum | None = None,
        codes: Mapping[str, NDArray[np.int8]] | None = None,
    ) -> None:
        self.infinity, self.config = infinity, infinity.config
        self.folded = FoldedInfinity(infinity, equalization)
        super().__init__(
            stage_facts(linear_shapes(self.config), sizes),
            self._parameters,
            recipe,
            max(size.num_stages for size in sizes),
            infinity.pos_start.device,
            ranges=ranges,
            equalization=equalization,
            shift_and_sum=shift_and_sum,
            codes=codes,
        )
        with torch.no_grad():
            self._block_modulations, self._gains = self.folded.block_modulations(), self.folded.gains()

    def _parameters(self, name: str) -> tuple[Weight, Tensor | None]:
        if name in (SHARED_ADA_LIN, HEAD_ADA_LIN):
            return self.folded.modulation(name)
        return self.folded.weight(name), self.folded.bias(name)

    def condition(self, features: Tensor, visible: Tensor) -> TextCondition:
        """What both rows' texts decide.

        Args:
            features: float32 [R, Lt, Ct]; of shorter texts, anything behind their ends that widens no range.
            visible: which of them are tokens, bool [R, Lt].
        """
        level = torch.zeros(features.shape[1], dtype=torch.int64, device=self.device)
        seen = visible[:, None, None]
        normed = self.infinity.text_norm(features)
        cond = self.infinity.text_proj_for_sos(normed, seen).detach()[:, None]
        hidden = F.gelu(self.apply(TEXT_IN, normed.detach(), level), approximate="tanh")
        shared, head = self.apply_all((SHARED_ADA_LIN, HEAD_ADA_LIN), F.silu(cond), level[:1])
        start = cond + self.infinity.pos_start.detach()
        return TextCondition(
            start, shared[:, 0], head[:, 0].unflatten(-1, (2, -1)), self.apply(TEXT_OUT, hidden, level), seen
        )

    def span(self, size: Size) -> SizeSpan:
        """All stages of a size."""
        cos, sin = rope_tables(size, self.config.head_dim, self.config.rope_mode)
        return SizeSpan(Span.of(size.stage_tokens, self.device), (cos.to(self.device), sin.to(self.device)))

    def embed(self, condition: TextCondition, inputs: Tensor, size: SizeSpan) -> Tensor:
        """The transformer's input before the level embedding, [R, l, C].

        Args:
            condition: of the texts.
            inputs: float32 [B, l - 1, D], those of all stages but the first (`multi_scale_bits.accumulate`).
            size: of the pictures.
        """
        x = self.apply("word_embed", inputs, size.span.own_level[1:], paired=False)
        return torch.cat((condition.start, x.repeat(2, 1, 1)), dim=1)

    def modulation(self, i: int, condition: TextCondition) -> Sequence[Tensor]:
        """gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2 of block i, [R, 1, C] each, equalized."""
        parts = condition.modulation + self._block_modulations[i]
        if self._gains is not None:
            parts = parts * self._gains[i]
        return parts.unflatten(-1, (6, -1)).unsqueeze(1).unbind(2)

    def self_attention_part(self, i: int, x: Tensor, condition: TextCondition, size: SizeSpan) -> Tensor:
        """x [R, l, C], with the level embedding where block i adds it, plus its self-attention."""
        level = size.span.own_level
        if i in self.config.level_blocks:
            x = x + self.infinity.lvl_embed.weight.detach()[level]
        gamma1, _, scale1, _, shift1, _ = self.modulation(i, condition)
        name = f"blocks.{i}.sa"
        projected = self.apply_all([f"{name}.{part}" for part in "qkv"], norm(x) * scale1 + shift1, level)
        q, k, v = (by_head(found, self.config.num_heads) for found in projected)
        q, k = self.directions(q, size) * self.folded.query_scale(i), self.directions(k, size)
        self.watch_operands(f"{name}.mix", (q, k, v), [level] * 3)
        mixed = self.attentions[f"{name}.mix"](q, k, v, size.span).transpose(1, 2).flatten(2)
        return x + self.apply(f"{name}.proj", mixed, level) * gamma1

    def directions(self, x: Tensor, size: SizeSpan) -> Tensor:
        """l2-normalised and turned, in the graph's order: [R, H, l, d]."""
        if self.config.rope_mode != 1:
            return F.normalize(_turned(x, *size.rope), dim=-1)
        return _turned(F.normalize(x, dim=-1), *size.rope)

    def cross_attention_part(self, i: int, x: Tensor, condition: TextCondition, size: SizeSpan) -> Tensor:
        """x [R, l, C] plus the attention of block i to the text."""
        level, heads, name = size.span.own_level, self.config.num_heads, f"blocks.{i}.ca"
        of_text = torch.zeros(condition.projected.shape[1], dtype=torch.int64, device=self.device)
        h = F.layer_norm(x, x.shape[-1:], *self.folded.ca_norm(i), eps=NORM_EPS)
        query = self.apply(f"{name}.q", h, level)
        key, value = self.apply_all((f"{name}.k", f"{name}.v"), condition.projected, of_text)
        q, k, v = (by_head(found, heads) for found in (query, key, value))
        self.watch_operands(f"{name}.mix", (q, k, v), (level, of_text, of_text))
        mixed = self.attentions[f"{name}.mix"](q, k, v, size.span, condition.visible).transpose(1, 2).flatten(2)
        return x + self.apply(f"{name}.proj", mixed, level)

    def ffn_part(self, i: int, x: Tensor, condition: TextCondition, size: SizeSpan) -> Tensor:
        """x [R, l, C] plus the feed-forward part of block i."""
        _, gamma2, _, scale2, _, shift2 = self.modulation(i, condition)
        level = size.span.own_level
        h = F.gelu(self.apply(f"blocks.{i}.ffn.fc1", norm(x) * scale2 + shift2, level), approximate="tanh")
        return x + self.apply(f"blocks.{i}.ffn.fc2", h, level) * gamma2

    def guided_log_odds(self, cfg_scale: float, x: Tensor, condition: TextCondition, size: SizeSpan) -> Tensor:
        """x [R, l, C] to log-odds of 1, [B, l, D]: the head of cfg_scale cond + (1 - cfg_scale) uncond."""
        scale, shift = condition.head[:, None].unbind(2)
        cond, uncond = (norm(x) * scale + shift).chunk(2)
        mixed = cond * cfg_scale + uncond * (1 - cfg_scale)
        return self.apply("head", mixed, size.span.own_level, paired=False)

    def units(self, cfg_scale: float) -> dict[str, Run]:
        found: dict[str, Run] = {}
        for i in range(self.config.depth):
            found[f"blocks.{i}.sa"] = partial(_self_attention_unit, i)
            found[f"blocks.{i}.ca"] = partial(_cross_attention_unit, i)
            found[f"blocks.{i}.ffn"] = partial(_ffn_unit, i)
        return found | {"head": partial(_head_unit, cfg_scale)}


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The halves of each head's channels turned (`folded`): [R, H, l, d] by [l, d/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def _self_attention_unit(
    i: int, model: SimulatedInfinity, x: Tensor, condition: TextCondition, size: SizeSpan
) -> Tensor:
    return model.self_attention_part(i, x, condition, size)


def _cross_attention_unit(
    i: int, model: SimulatedInfinity, x: Tensor, condition: TextCondition, size: SizeSpan
) -> Tensor:
    return model.cross_attention_part(i, x, condition, size)


def _ffn_unit(i: int, model: SimulatedInfinity, x: Tensor, condition: TextCondition, size: SizeSpan) -> Tensor:
    return model.ffn_part(i, x, condition, size)


def _head_unit(
    cfg_scale: float, model: SimulatedInfinity, x: Tensor, condition: TextCondition, size: SizeSpan
) -> Tensor:
    return model.guided_log_odds(cfg_scale, x, condition, size)
