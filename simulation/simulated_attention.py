"""The two products of attention as a recipe computes them, in torch (docs/quantization.md, "Attention").

Symbols: R rows (2B, an image is the rows r and r + B), H heads, l tokens of the span, T tokens so far, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerAttention
from nextscale.graph_passes.quantize_attention import Magnitudes
from nextscale.models.var.transformer import VARConfig
from nextscale.simulation._fake_quantizers import (
    fake_affine,
    fake_attention,
    fake_values,
    kernel_shifts,
    stage_maximum,
    symmetric_scale,
)

# The operands that have static ranges where the recipe says so.
OPERANDS = ("query", "key", "value")


def all_places(config: VARConfig) -> tuple[int, ...]:
    """Shift-and-sum's places for all tokens of each stage."""
    return tuple(begin + pn * pn for begin, pn in zip(config.stage_begins, config.patch_nums, strict=True))


def operand_name(attention: str, operand: str) -> str:
    """The name of a range of one of attention's OPERANDS."""
    return f"{attention}.{operand}"


@dataclass(frozen=True)
class Span:
    """Consecutive stages that run at once.

    Attributes:
        first: the first of them.
        sizes: tokens of each.
        past: T of the stages before.
        level: the stage of each token so far, int64 [past + sum(sizes)].
        num_stages: S.
    """

    first: int
    sizes: tuple[int, ...]
    past: int
    level: Tensor
    num_stages: int

    @classmethod
    def of(cls, config: VARConfig, stages: Sequence[int], device: torch.device) -> Span:
        """The given stages, which follow each other."""
        sizes = tuple(config.patch_nums[si] ** 2 for si in stages)
        past = config.stage_begins[stages[0]]
        level = torch.cat([torch.full((pn * pn,), si) for si, pn in enumerate(config.patch_nums)])
        return cls(stages[0], sizes, past, level[: past + sum(sizes)].to(device), config.num_stages)

    @property
    def own_level(self) -> Tensor:
        """The stage of each token of the span, int64 [l]."""
        return self.level[self.past :]


class SimulatedAttention:
    """softmax(q k) v of one block, before proj.

    Args:
        choice: how it is quantized; None: not at all.
        magnitudes: static ones of q, k and v; None: those of each image.
        shift_and_sum: which tokens are attentive; None: V has its codes.
    """

    def __init__(
        self,
        choice: IntegerAttention | None,
        magnitudes: Magnitudes | None = None,
        shift_and_sum: ShiftAndSum | None = None,
    ) -> None:
        self.choice, self.shift_and_sum = choice, shift_and_sum
        self.magnitudes = {} if magnitudes is None else asdict(magnitudes)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        """query [R, H, l, d], key and value [R, H, T, d], all so far -> [R, H, l, d]."""
        scales, choice = {}, self.choice
        if choice is not None:
            scale = symmetric_scale(self._magnitude("query", query, span.own_level, span), choice.bits)
            query = self._codes(query, scale[:, None, span.own_level, None], choice.bits)
            # Keys and values count from the first stage on.
            scales = {
                part: symmetric_scale(self._magnitude(part, x, span.level, span).cummax(dim=1).values, choice.bits)
                for part, x in (("key", key), ("value", value))
            }
        mixed, end = [], span.past
        for si, queries in enumerate(query.split(span.sizes, dim=2), span.first):
            end += queries.shape[2]
            keys, values = key[:, :, :end], value[:, :, :end]
            if choice is None:
                mixed.append(F.softmax(queries @ keys.mT, dim=-1) @ values)
                continue
            key_scale, value_scale = (scales[part][:, si, None, None, None] for part in ("key", "value"))
            weights = F.softmax(queries @ self._codes(keys, key_scale, choice.bits).mT, dim=-1)
            mixed.append(self._mix(choice, weights, values, value_scale, si))
        return torch.cat(mixed, dim=2)

    def _mix(self, choice: IntegerAttention, weights: Tensor, values: Tensor, scale: Tensor, si: int) -> Tensor:
        """A V at the queries of stage `si`: [R, H, l, T], [R, H, T, d] -> [R, H, l, d]."""
        quantized = fake_attention(weights, choice.weights, choice.bits)
        if self.shift_and_sum is None:
            return quantized @ self._codes(values, scale, choice.bits)
        shifts = kernel_shifts(weights, self.shift_and_sum.theta, self.shift_and_sum.places[si])
        return quantized @ fake_values(values, scale, choice.bits, shifts)

    def _magnitude(self, part: str, x: Tensor, level: Tensor, span: Span) -> Tensor:
        """a of each row and stage, [R, S], from x [R, H, l, d] or from calibration."""
        if self.magnitudes:
            return x.new_full((len(x), span.num_stages), self.magnitudes[part])
        return stage_maximum(x.detach().abs().amax((1, 3)), level, span.num_stages, paired=True)

    def _codes(self, x: Tensor, scale: Tensor, bits: int) -> Tensor:
        return fake_affine(x, scale, 2.0 ** (bits - 1), bits, clips=bool(self.magnitudes))
