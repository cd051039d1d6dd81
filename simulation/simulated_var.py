"""A quantized VAR in torch: each linear layer and each product of attention computes what the recipe's codes stand for.

Float32 on the model's device, differentiable (`fake_quantizers`). Two ways to run it agree: teacher-forced over all
stages at once (`SimulatedVAR.forward`), and stage by stage with a cache (`SimulatedVAR.stage_logits`).
Symbols: B images, R = 2B rows (conditional, then unconditional), l tokens, C width, S stages, V codebook entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerLayer, IntegerModel
from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.qparams import Range, WeightQParams
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.models.transformer_parts import NORM_EPS, KVCache
from nextscale.models.var.folded import FoldedVAR
from nextscale.models.var.layers import HEAD_ADA_LIN, SHARED_ADA_LIN
from nextscale.models.var.transformer import VAR, Block
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation._fake_quantizers import (
    FloatInput,
    ImageInput,
    InputQuantizer,
    PairInput,
    StaticInput,
    TokenInput,
)
from nextscale.simulation.simulated_attention import OPERANDS, SimulatedAttention, Span, operand_name


class SimulatedLinear:
    """A linear layer with quantized weights and inputs.

    Attributes:
        name: as in the stage graph.
        exact: the float weight [out, in].
        weight: what it computes with; reconstruction puts weights with gradients here.
        qparams: how the weight is rounded; None if the layer is float.
    """

    def __init__(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        quantize_input: InputQuantizer,
        qparams: WeightQParams | None,
    ) -> None:
        self.name, self.exact, self.weight, self.bias = name, weight, weight, bias
        self.quantize_input, self.qparams = quantize_input, qparams
        if qparams is not None:
            self.set_codes(qparams.quantize(weight.cpu().numpy(), axis=0))

    def set_codes(self, codes: NDArray[np.int8]) -> None:
        """Compute with these weights: int8 [out, in]."""
        assert self.qparams is not None
        self.weight = torch.from_numpy(codes * self.qparams.scale[:, None]).to(self.exact.device)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [..., in], quantized already, to [..., out]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Condition:
    """What the class decides: the class embedding [R, C], and what modulates blocks, [R, C] or [R, 6, C]."""

    embedding: Tensor
    cond: Tensor


class SimulatedVAR:
    """`var` quantized as `recipe` says.

    Args:
        var: the model; referenced where its weights are not changed.
        recipe: what is quantized, and how.
        ranges: what `observe` found, for all of `required_ranges`.
        equalization: as in the stage graph.
        shift_and_sum: needed by recipes that have it.
        codes: weights' codes by layer instead of those rounded to nearest, int8 [out, in].

    Attributes:
        integer: what is integer, and how.
        linears: all linear layers by name.
        watch: told the name, input [R, l, C] and level of each layer and of attention's operands.
    Raises:
        NextscaleError: ranges or shift_and_sum are missing, or shift_and_sum does not fit.
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
        self.var, self.config, self.recipe, self.equalization = var, var.config, recipe, equalization
        self.device = var.class_emb.weight.device
        folded, ranges = FoldedVAR(var, equalization), ranges or {}
        self.integer = IntegerModel.decide(recipe, folded.facts)
        missing = sorted(required_ranges(self.integer) - set(ranges))
        if missing:
            raise NextscaleError(f"recipe {recipe.name}: no calibrated range of {missing[0]}; observe token maps first")
        attention = self.integer.attention
        if attention is None or attention.shift_and_sum == "off":
            shift_and_sum = None
        elif shift_and_sum is None:
            raise NextscaleError(f"recipe {recipe.name} has shift-and-sum: give its theta and places")
        else:
            shift_and_sum.check(self.config.num_stages)
        with torch.no_grad():
            self.linears = {layer.name: self._linear(folded, layer.name, ranges) for layer in folded.facts.layers}
        for name, found in (codes or {}).items():
            self.linears[name].set_codes(found)
        self.attention = []
        for name in folded.facts.attentions:
            operands = [ranges[operand_name(name, x)] for x in OPERANDS if self.integer.static_attention]
            self.attention.append(
                SimulatedAttention(attention, Magnitudes.of(*operands) if operands else None, shift_and_sum)
            )
        self.watch: Callable[[str, Tensor, Tensor], None] = _nobody

    def _linear(self, folded: FoldedVAR, name: str, ranges: Mapping[str, Range]) -> SimulatedLinear:
        found, bias = folded.weight(name), folded.bias(name)
        weight = found if isinstance(found, Tensor) else found()
        layer, weights = self.integer.layers.get(name), self.integer.weights
        if layer is None:
            return SimulatedLinear(name, weight, bias, FloatInput(), None)
        qparams = WeightQParams.choose(weight.cpu().numpy(), 0, weights.bits, weights.range)
        return SimulatedLinear(name, weight, bias, self._input_quantizer(layer, ranges), qparams)

    def _input_quantizer(self, layer: IntegerLayer, ranges: Mapping[str, Range]) -> InputQuantizer:
        bits, name = self.integer.bits, layer.facts.name
        if layer.facts.known is not None:
            return StaticInput(layer.facts.known, bits, self.device)
        if layer.zero_point is not None:
            return TokenInput(bits, layer.zero_point)
        if layer.granularity == "image":
            return ImageInput(bits, self.config.num_stages)
        if layer.granularity == "pair":
            return PairInput(*(StaticInput(ranges[part_name(name, part)], bits, self.device) for part in PARTS))
        return StaticInput(layer.static_range(ranges[name]), bits, self.device)

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
            self._divided(f"blocks.{i}.{layer}", scale + 1, shift)
            for layer, scale, shift in (("attn.qkv", scale1, shift1), ("ffn.fc1", scale2, shift2))
        )
        return gamma1, gamma2, scale1, scale2, shift1, shift2

    def _divided(self, layer: str, *modulations: Tensor) -> tuple[Tensor, ...]:
        if layer not in self.equalization.factors:
            return modulations
        return tuple(modulation / self.equalization.factors[layer] for modulation in modulations)

    def span(self, stages: Sequence[int] | None = None) -> Span:
        """The given stages, or all."""
        return Span.of(self.config, stages or range(self.config.num_stages), self.device)

    def embed(self, condition: Condition, inputs: Tensor | None, span: Span) -> Tensor:
        """The transformer's input [R, l, C]; inputs float32 [B, l, Cvae] are those of all stages but the first."""
        parts = []
        if span.first == 0:
            parts.append(condition.embedding[:, None] + self.var.pos_start.detach())
        if inputs is not None and inputs.shape[1]:
            level = span.own_level[-inputs.shape[1] :]
            parts.append(self._linear_of("word_embed", inputs, level, paired=False).repeat(2, 1, 1))
        return torch.cat(parts, dim=1) + self.var.position().detach()[:, span.past : len(span.level)]

    def _linear_of(self, name: str, x: Tensor, level: Tensor, *, paired: bool = True) -> Tensor:
        linear = self.linears[name]
        self.watch(name, x, level)
        return linear(linear.quantize_input(x, level, paired))

    def attention_part(
        self, i: int, x: Tensor, condition: Condition, span: Span, cache: KVCache | None = None
    ) -> Tensor:
        """x [R, l, C] plus the attention of block i."""
        gamma1, _, scale1, _, shift1, _ = self.modulation(i, condition)
        name, attn = f"blocks.{i}.attn", cast(Block, self.var.blocks[i]).attn
        operands = (operand_name(self.integer.facts.attentions[i], operand) for operand in OPERANDS)
        h = _norm(x) * scale1 + shift1
        quantized: dict[str, Tensor] = {}

        def project(part: str) -> Tensor:
            linear = self.linears[f"{name}.{part}"]
            self.watch(linear.name, h, span.own_level)
            layer = self.integer.layers.get(linear.name)
            choice = "float" if layer is None else layer.granularity
            if choice not in quantized:
                quantized[choice] = linear.quantize_input(h, span.own_level, True)
            return linear(quantized[choice]).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

        q, k, v = (project(part) for part in "qkv")
        if attn.attn_l2_norm:
            q, k = F.normalize(q, dim=-1) * attn.query_scale().detach(), F.normalize(k, dim=-1)
        for operand, x_part in zip(operands, (q, k, v), strict=True):
            self.watch(operand, x_part.transpose(1, 2).flatten(2), span.own_level)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = self.attention[i](q, k, v, span).transpose(1, 2).flatten(2)
        return x + self._linear_of(f"{name}.proj", mixed, span.own_level) * gamma1

    def ffn_part(self, i: int, x: Tensor, condition: Condition, span: Span) -> Tensor:
        """x [R, l, C] plus the feed-forward part of block i."""
        _, gamma2, _, scale2, _, shift2 = self.modulation(i, condition)
        h = _norm(x) * scale2 + shift2
        h = F.gelu(self._linear_of(f"blocks.{i}.ffn.fc1", h, span.own_level), approximate="tanh")
        return x + self._linear_of(f"blocks.{i}.ffn.fc2", h, span.own_level) * gamma2

    def head_input(self, x: Tensor, condition: Condition, span: Span, cfg_scale: float | None) -> Tensor:
        """What the head sees: guided rows [B, l, C], since guidance is mixed before it; without, all rows."""
        parts = self._ada_lin(HEAD_ADA_LIN, condition.embedding).unflatten(-1, (2, -1))
        scale, shift = parts.unsqueeze(1).unbind(2)
        scale, shift = self._divided("head", scale + 1, shift)
        h = _norm(x) * scale + shift
        if cfg_scale is None:
            return h
        cond, uncond = h.chunk(2)
        t = (cfg_scale * span.own_level / (self.config.num_stages - 1))[:, None]
        return (1 + t) * cond - t * uncond

    def units(self, cfg_scale: float) -> dict[str, Callable[[SimulatedVAR, Tensor, Condition, Span], Tensor]]:
        """What computes each part that is reconstructed on its own (`LayerFacts.unit`), in order, of any simulation."""
        found: dict[str, Callable[[SimulatedVAR, Tensor, Condition, Span], Tensor]] = {}
        for i in range(self.config.depth):
            found[f"blocks.{i}.attn"] = partial(_attention_unit, i)
            found[f"blocks.{i}.ffn"] = partial(_ffn_unit, i)
        return found | {"head": partial(_head_unit, cfg_scale)}

    def head(self, h: Tensor, span: Span, *, guided: bool = True) -> Tensor:
        """Logits of `head_input`, [.., l, C] -> [.., l, V]."""
        return self._linear_of("head", h, span.own_level, paired=not guided)

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


def _nobody(name: str, x: Tensor, level: Tensor) -> None:
    """Watches nothing."""


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def part_name(layer: str, part: str) -> str:
    """The name of a range of one of `observe_inputs.PARTS` of a layer's input."""
    return f"{layer}.{part}"


def required_ranges(integer: IntegerModel) -> set[str]:
    """The names that `ranges` must hold for a simulation: layers or their parts, and attention's operands."""
    names = {*integer.static, *(part_name(name, part) for name in integer.pairs for part in PARTS)}
    if integer.attention is not None and integer.static_attention:
        names |= {operand_name(name, operand) for name in integer.attention.names for operand in OPERANDS}
    return names
