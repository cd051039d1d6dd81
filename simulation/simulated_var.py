"""A quantized VAR in torch: each linear layer and each product of attention computes what the recipe's codes stand for.

Float32 on the model's device, differentiable (`fake_quantizers`). Two ways to run it agree: teacher-forced over all
stages at once (`SimulatedVAR.forward`), and stage by stage with a cache (`SimulatedVAR.stage_logits`).
Symbols: B images, R = 2B rows (conditional, then unconditional), l tokens, C width, S stages, V codebook entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.pipeline import CLASS_LAYER, UNGUIDED_LAYERS
from nextscale.graph_passes.qparams import Range, WeightQParams
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.equalization import Equalization
from nextscale.models.var.transformer import NORM_EPS, VAR, Block, KVCache
from nextscale.runtime.errors import NextscaleError
from nextscale.simulation.fake_quantizers import (
    FloatInput,
    ImageInput,
    InputQuantizer,
    PairInput,
    StaticInput,
    TokenInput,
    equal_ranges,
)
from nextscale.simulation.simulated_attention import ShiftAndSum, SimulatedAttention, Span

NOT_EQUALIZED = Equalization()


def linear_names(var: VAR) -> list[str]:
    """The linear layers, named as in the stage graph."""
    config = var.config
    names = ["word_embed", *(["shared_ada_lin.1"] if config.shared_aln else [])]
    for i in range(config.depth):
        names += [] if config.shared_aln else [f"blocks.{i}.ada_lin.1"]
        names += [f"blocks.{i}.attn.{part}" for part in ("q", "k", "v", "proj")]
        names += [f"blocks.{i}.ffn.fc1", f"blocks.{i}.ffn.fc2"]
    return [*names, "head_nm.ada_lin.1", "head"]


def folded_weights(var: VAR, name: str, equalization: Equalization = NOT_EQUALIZED) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a linear layer as the stage graph has them (`export/var/stage_graph.py`).

    The scale of attention without l2 norm is in q, equalization in all but adaLN, whose rows it divides: that changes
    no code, so `SimulatedVAR` divides what they make.
    """
    if not name.startswith("blocks."):
        layer = cast(nn.Linear, var.get_submodule(name))
        return equalized(equalization, name, layer.weight.detach()), layer.bias.detach()
    _, i, unit, part = name.split(".")
    block = cast(Block, var.blocks[int(i)])
    if part not in "qkv":
        layer = cast(nn.Linear, var.get_submodule(name))
        return equalized(equalization, name, layer.weight.detach()), layer.bias.detach()
    attn, prefix = block.attn, f"blocks.{i}.{unit}"
    weight = attn.mat_qkv.weight.detach().chunk(3)["qkv".index(part)]
    bias = {"q": attn.q_bias.detach(), "k": None, "v": attn.v_bias.detach()}[part]
    if part == "q" and not attn.attn_l2_norm:
        assert bias is not None
        weight, bias = weight * attn.scale, bias * attn.scale
    if part == "v":
        assert bias is not None
        weight, bias = (equalization.divide(f"{prefix}.proj", rows) for rows in (weight, bias))
    return equalized(equalization, f"{prefix}.qkv", weight), bias


def equalized(equalization: Equalization, layer: str, weight: Tensor) -> Tensor:
    """`Equalization.multiply`, evaluated."""
    found = equalization.multiply(layer, weight)
    return found if isinstance(found, Tensor) else found()


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
        ranges: what `observe` found, for the layers that need it (`needs_ranges`).
        equalization: as in the stage graph.
        shift_and_sum: needed by recipes that have it.
        codes: weights' codes by layer instead of those rounded to nearest, int8 [out, in].
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
        ranges = ranges or {}
        missing = sorted(required_ranges(var, recipe) - set(ranges))
        if missing:
            raise NextscaleError(f"recipe {recipe.name}: no calibrated range of {missing[0]}; observe token maps first")
        if recipe.attention.shift_and_sum != "off":
            if shift_and_sum is None:
                raise NextscaleError(f"recipe {recipe.name} has shift-and-sum: give its theta and places")
            shift_and_sum.check(self.config.num_stages)
        with torch.no_grad():
            self.linears = {name: self._linear(name, ranges) for name in linear_names(var)}
        for name, found in (codes or {}).items():
            self.linears[name].set_codes(found)
        self.attention = [
            SimulatedAttention(f"blocks.{i}.attn", recipe, ranges, shift_and_sum) for i in range(self.config.depth)
        ]
        self.watch: Callable[[str, Tensor, Tensor], None] = _nobody

    def _linear(self, name: str, ranges: Mapping[str, Range]) -> SimulatedLinear:
        weight, bias = folded_weights(self.var, name, self.equalization)
        choice = self.layer_choice(name)
        if choice == "float":
            return SimulatedLinear(name, weight, bias, FloatInput(), None)
        bits, weights = self.recipe.activations.bits, self.recipe.weights
        quantizer: InputQuantizer
        if CLASS_LAYER in name:
            observed = class_range(self.var)
            quantizer = TokenInput(observed, bits) if choice == "token" else StaticInput(observed, bits, self.device)
        elif choice == "image":
            quantizer = ImageInput(bits, self.config.num_stages)
        elif choice == "token":
            quantizer = TokenInput(ranges[name], bits)
        elif _is_pair(name, choice):
            parts = (ranges[part_name(name, part)] for part in PARTS)
            quantizer = PairInput(*(StaticInput(observed, bits, self.device) for observed in parts))
        else:
            observed = equal_ranges(ranges[name]) if choice == "tensor" else ranges[name]
            quantizer = StaticInput(observed, bits, self.device)
        qparams = WeightQParams.choose(weight.cpu().numpy(), 0, weights.bits, weights.range)
        return SimulatedLinear(name, weight, bias, quantizer, qparams)

    def layer_choice(self, name: str) -> str:
        """The recipe's choice for a layer; float for all of them in full precision."""
        return "float" if self.recipe.precision == "fp32" else self.recipe.layer_choice(name)

    def condition(self, labels: Tensor) -> Condition:
        """Class labels int64 [B] to the embeddings of both rows of each image."""
        null = torch.full_like(labels, self.config.num_classes)
        embedding = F.embedding(torch.cat((labels, null)), self.var.class_emb.weight.detach())
        if not self.config.shared_aln:
            return Condition(embedding, embedding)
        return Condition(embedding, self._ada_lin("shared_ada_lin.1", embedding).unflatten(-1, (6, -1)))

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
        h = _norm(x) * scale1 + shift1
        quantized: dict[str, Tensor] = {}

        def project(part: str) -> Tensor:
            linear = self.linears[f"{name}.{part}"]
            self.watch(linear.name, h, span.own_level)
            choice = self.layer_choice(linear.name)
            if choice not in quantized:
                quantized[choice] = linear.quantize_input(h, span.own_level, True)
            return linear(quantized[choice]).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

        q, k, v = (project(part) for part in "qkv")
        if attn.attn_l2_norm:
            q, k = F.normalize(q, dim=-1) * attn.query_scale().detach(), F.normalize(k, dim=-1)
        for part, x_part in (("query", q), ("key", k), ("value", v)):
            self.watch(f"{name}.{part}", x_part.transpose(1, 2).flatten(2), span.own_level)
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
        parts = self._ada_lin("head_nm.ada_lin.1", condition.embedding).unflatten(-1, (2, -1))
        scale, shift = parts.unsqueeze(1).unbind(2)
        scale, shift = self._divided("head", scale + 1, shift)
        h = _norm(x) * scale + shift
        if cfg_scale is None:
            return h
        cond, uncond = h.chunk(2)
        t = (cfg_scale * span.own_level / (self.config.num_stages - 1))[:, None]
        return (1 + t) * cond - t * uncond

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
            caches: one a block, empty at stage 0.
        """
        span = self.span([si])
        return self._transform(self.embed(condition, inputs, span), condition, span, cfg_scale, caches)


def _nobody(name: str, x: Tensor, level: Tensor) -> None:
    """Watches nothing."""


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def class_range(var: VAR) -> Range:
    """The range of what adaLN's linear layers see: SiLU of the class embeddings, of all classes at once."""
    activated = F.silu(var.class_emb.weight.detach())
    return Range(*(np.array([extreme.item()], np.float32) for extreme in activated.aminmax()))


def part_name(layer: str, part: str) -> str:
    """The name of a range of one of `observe_inputs.PARTS` of a layer's input."""
    return f"{layer}.{part}"


def _is_pair(name: str, choice: str) -> bool:
    """Whether the layer sees both rows of an image, and the choice takes them apart."""
    return choice == "pair" and name not in UNGUIDED_LAYERS and CLASS_LAYER not in name


def required_ranges(var: VAR, recipe: Recipe) -> set[str]:
    """The names that `ranges` must hold for a simulation: layers, and attention's static magnitudes."""
    if recipe.precision == "fp32":
        return set()
    names = set()
    for name in linear_names(var):
        choice = recipe.layer_choice(name)
        if _is_pair(name, choice):
            names |= {part_name(name, part) for part in PARTS}
        elif CLASS_LAYER not in name and choice in ("tensor", "stage", "pair", "token"):
            names.add(name)
    if recipe.attention.products == "integer" and recipe.attention.granularity == "tensor":
        names |= {f"blocks.{i}.attn.{part}" for i in range(var.config.depth) for part in ("query", "key", "value")}
    return names
