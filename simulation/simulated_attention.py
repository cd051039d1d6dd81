"""The two products of attention as a recipe computes them, in torch (docs/quantization.md, "Attention").

Symbols: R rows (2B, an image is the rows r and r + B), H heads, l tokens of the span, T tokens so far, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.integer_model import IntegerAttention
from nextscale.graph_passes.quantize_attention import Magnitudes
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


def all_places(stage_tokens: Sequence[int]) -> tuple[int, ...]:
    """Shift-and-sum's places for all tokens so far at each stage, of which there are so many."""
    return tuple(accumulate(stage_tokens))


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
    def of(cls, stage_tokens: Sequence[int], device: torch.device, stages: Sequence[int] | None = None) -> Span:
        """The given stages, which follow each other, of those with so many tokens; None: all."""
        stages = range(len(stage_tokens)) if stages is None else stages
        sizes, past = tuple(stage_tokens[si] for si in stages), sum(stage_tokens[: stages[0]])
        level = torch.repeat_interleave(torch.tensor(stage_tokens))[: past + sum(sizes)]
        return cls(stages[0], sizes, past, level.to(device), len(stage_tokens))

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

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, span: Span, visible: Tensor | None = None) -> Tensor:
        """Mix values.

        Args:
            query: float32 [R, H, l, d].
            key, value: [R, H, T, d], those of all tokens so far; or of a text, which is there from the first stage on.
            span: of the queries.
            visible: of a text, bool [R, 1, 1, T]: which tokens are its row's. None: there is no text.
        Returns:
            [R, H, l, d].
        """
        scales, choice = {}, self.choice
        key_level = span.level if visible is None else span.level.new_zeros(key.shape[2])
        if choice is not None:
            scale = symmetric_scale(self._magnitude("query", query, span.own_level, span), choice.bits)
            query = self._codes(query, scale[:, None, span.own_level, None], choice.bits)
            # Keys and values count from the first stage on.
            scales = {
                part: symmetric_scale(self._magnitude(part, x, key_level, span).cummax(dim=1).values, choice.bits)
                for part, x in (("key", key), ("value", value))
            }
        mixed, end = [], span.past
        for si, queries in enumerate(query.split(span.sizes, dim=2), span.first):
            end += queries.shape[2]
            keys, values = (key[:, :, :end], value[:, :, :end]) if visible is None else (key, value)
            if choice is None:
                mixed.append(_weights(queries, keys, visible) @ values)
                continue
            key_scale, value_scale = (scales[part][:, si, None, None, None] for part in ("key", "value"))
            weights = _weights(queries, self._codes(keys, key_scale, choice.bits), visible)
            mixed.append(self._mix(choice, weights, values, value_scale, si, visible))
        return torch.cat(mixed, dim=2)

    def _mix(
        self, choice: IntegerAttention, weights: Tensor, values: Tensor, scale: Tensor, si: int, visible: Tensor | None
    ) -> Tensor:
        """A V at the queries of stage `si`: [R, H, l, T], [R, H, T, d] -> [R, H, l, d]."""
        quantized = fake_attention(weights, choice.weights, choice.bits, visible)
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


def _weights(query: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
    """A: softmax(q k) over what is visible."""
    scores = query @ key.mT
    return F.softmax(scores if visible is None else scores.masked_fill(~visible, -torch.inf), dim=-1)
