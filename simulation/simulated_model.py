"""What the quantized twins of all families have in common: integer linear layers, attentions, and who watches them.

Float32 on the model's device, differentiable (`fake_quantizers`).
Symbols: B images, R = 2B rows (conditional, then unconditional), l tokens, C width, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerLayer, IntegerModel
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.observe_inputs import PARTS
from nextscale.graph_passes.qparams import Range, WeightQParams
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.graph_passes.recipe import Recipe
from nextscale.models._weight import Weight
from nextscale.models.equalization import Equalization
from nextscale.models.transformer_parts import NORM_EPS
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation._fake_quantizers import (
    FloatInput,
    ImageInput,
    InputQuantizer,
    PairInput,
    StaticInput,
    TokenInput,
)
from nextscale.simulation.simulated_attention import OPERANDS, SimulatedAttention, operand_name

# A layer's name to its weight [out, in] and bias [out], as the stage graph has them.
Parameters = Callable[[str], tuple[Weight, Tensor | None]]
# What computes a part of a twin: the twin, its input [R, l, C], what the class or the text decides, and the stages.
Run = Callable[[Any, Tensor, Any, Any], Tensor]


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


class SimulatedModel:
    """The layers and attentions of a quantized model; a family's twin says how they are put together.

    Args:
        facts: of the stage graph.
        parameters: of the equalized model.
        recipe: what is quantized, and how.
        num_stages: S.
        device: the model's.
        ranges: what was observed, for all of `required_ranges`.
        equalization: that the parameters have.
        shift_and_sum: needed by recipes that have it.
        codes: weights' codes by layer instead of those rounded to nearest, int8 [out, in].

    Attributes:
        integer: what is integer, and how.
        linears: all linear layers by name.
        attentions: by the name of the second MatMul; those that are not integer are float.
        watch: told the name, input [R, l, C] and level of each layer and of attention's operands.
    Raises:
        NextscaleError: ranges or shift_and_sum are missing, or shift_and_sum does not fit.
    """

    def __init__(
        self,
        facts: StageFacts,
        parameters: Parameters,
        recipe: Recipe,
        num_stages: int,
        device: torch.device,
        *,
        ranges: Mapping[str, Range] | None,
        equalization: Equalization,
        shift_and_sum: ShiftAndSum | None,
        codes: Mapping[str, NDArray[np.int8]] | None,
    ) -> None:
        self.recipe, self.equalization, self.num_stages, self.device = recipe, equalization, num_stages, device
        self.integer, ranges = IntegerModel.decide(recipe, facts), ranges or {}
        missing = sorted(required_ranges(self.integer) - set(ranges))
        if missing:
            raise NextscaleError(f"recipe {recipe.name}: no calibrated range of {missing[0]}; observe token maps first")
        attention = self.integer.attention
        if attention is None or attention.shift_and_sum == "off":
            shift_and_sum = None
        elif shift_and_sum is None:
            raise NextscaleError(f"recipe {recipe.name} has shift-and-sum: give its theta and places")
        else:
            shift_and_sum.check(num_stages)
        with torch.no_grad():
            self.linears = {layer.name: self._linear(layer.name, parameters, ranges) for layer in facts.layers}
        for name, found in (codes or {}).items():
            self.linears[name].set_codes(found)
        self.attentions = dict[str, SimulatedAttention]()
        for name in (*facts.attentions, *facts.cross_attentions):
            choice = attention if attention is not None and name in attention.names else None
            static = choice is not None and self.integer.static_attention
            operands = [ranges[operand_name(name, operand)] for operand in OPERANDS] if static else []
            magnitudes = Magnitudes.of(*operands) if operands else None
            self.attentions[name] = SimulatedAttention(choice, magnitudes, shift_and_sum)
        self.watch: Callable[[str, Tensor, Tensor], None] = _nobody

    def units(self, cfg_scale: float) -> dict[str, Run]:
        """What computes each part that is reconstructed on its own (`LayerFacts.unit`), in order, of any simulation.

        One after the other, from the transformer's input to the guided logits.
        """
        raise NotImplementedError

    def _linear(self, name: str, parameters: Parameters, ranges: Mapping[str, Range]) -> SimulatedLinear:
        found, bias = parameters(name)
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
            return ImageInput(bits, self.num_stages)
        if layer.granularity == "pair":
            return PairInput(*(StaticInput(ranges[part_name(name, part)], bits, self.device) for part in PARTS))
        return StaticInput(layer.static_range(ranges[name]), bits, self.device)

    def apply(self, name: str, x: Tensor, level: Tensor, *, paired: bool = True) -> Tensor:
        """A linear layer: float32 [R, l, in] -> [R, l, out]; unpaired rows are images."""
        linear = self.linears[name]
        self.watch(name, x, level)
        return linear(linear.quantize_input(x, level, paired))

    def apply_all(self, names: Sequence[str], x: Tensor, level: Tensor) -> list[Tensor]:
        """Linear layers that read the same, which is quantized once for each way of doing it."""
        quantized, found = dict[str, Tensor](), []
        for name in names:
            linear, layer = self.linears[name], self.integer.layers.get(name)
            self.watch(name, x, level)
            choice = "float" if layer is None else layer.granularity
            if choice not in quantized:
                quantized[choice] = linear.quantize_input(x, level, True)
            found.append(linear(quantized[choice]))
        return found

    def watch_operands(self, attention: str, operands: Sequence[Tensor], levels: Sequence[Tensor]) -> None:
        """Show query, key and value, [R, H, l, d] each, before they join those of earlier stages."""
        for operand, x, level in zip(OPERANDS, operands, levels, strict=True):
            self.watch(operand_name(attention, operand), x.transpose(1, 2).flatten(2), level)

    def divided(self, layer: str, *modulations: Tensor) -> tuple[Tensor, ...]:
        """What makes a layer's input, [.., C], divided by its equalization."""
        if layer not in self.equalization.factors:
            return modulations
        return tuple(modulation / self.equalization.factors[layer] for modulation in modulations)


def by_head(x: Tensor, num_heads: int) -> Tensor:
    """[R, l, C] -> [R, H, l, d]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def norm(x: Tensor) -> Tensor:
    """LayerNorm without an affine part."""
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


def _nobody(name: str, x: Tensor, level: Tensor) -> None:
    """Watches nothing."""
