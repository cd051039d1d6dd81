"""The two products of attention as a recipe computes them, in torch (docs/quantization.md, "Attention").

Symbols: R rows (2B, an image is the rows r and r + B), H heads, l tokens of the span, T tokens so far, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.transformer import VARConfig
from nextscale.runtime.errors import NextscaleError
from nextscale.simulation.fake_quantizers import (
    fake_affine,
    fake_attention,
    fake_values,
    kernel_shifts,
    stage_maximum,
    symmetric_scale,
)


@dataclass(frozen=True)
class ShiftAndSum:
    """Which tokens are attentive: Score above theta, and at most places[si] a row and head at stage si's queries."""

    theta: float
    places: tuple[int, ...]

    @classmethod
    def unlimited(cls, theta: float, config: VARConfig) -> ShiftAndSum:
        """Places for all tokens."""
        ends = (begin + pn * pn for begin, pn in zip(config.stage_begins, config.patch_nums, strict=True))
        return cls(theta, tuple(ends))

    def check(self, num_stages: int) -> None:
        """Raise NextscaleError unless it fits a model of `num_stages`."""
        if not 0 <= self.theta <= 1:
            raise NextscaleError(f"shift-and-sum: theta is {self.theta}; expected 0 to 1")
        if len(self.places) != num_stages or min(self.places) < 0:
            raise NextscaleError(
                f"shift-and-sum: places are {list(self.places)}; expected {num_stages} numbers of at least 0"
            )


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
        name: "blocks.{i}.attn".
        recipe: what is quantized.
        ranges: with static magnitudes, those of f"{name}.query", ".key" and ".value".
        shift_and_sum: with a recipe that has it.
    """

    def __init__(
        self, name: str, recipe: Recipe, ranges: Mapping[str, Range], shift_and_sum: ShiftAndSum | None
    ) -> None:
        self.recipe, self.bits = recipe.attention, recipe.activations.bits
        self.integer = recipe.precision == "int8" and recipe.attention.products == "integer"
        self.shift_and_sum = shift_and_sum if self.integer and recipe.attention.shift_and_sum != "off" else None
        self.magnitudes: dict[str, float] = {}
        if self.integer and recipe.attention.granularity == "tensor":
            for part in ("query", "key", "value"):
                observed = ranges[f"{name}.{part}"]
                self.magnitudes[part] = float(max(abs(observed.minimum).max(), abs(observed.maximum).max()))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
        """query [R, H, l, d], key and value [R, H, T, d], all so far -> [R, H, l, d]."""
        scales = {}
        if self.integer:
            scale = symmetric_scale(self._magnitude("query", query, span.own_level, span), self.bits)
            query = self._codes(query, scale[:, None, span.own_level, None])
            # Keys and values count from the first stage on.
            scales = {
                part: symmetric_scale(self._magnitude(part, x, span.level, span).cummax(dim=1).values, self.bits)
                for part, x in (("key", key), ("value", value))
            }
        mixed, end = [], span.past
        for si, queries in enumerate(query.split(span.sizes, dim=2), span.first):
            end += queries.shape[2]
            keys, values = key[:, :, :end], value[:, :, :end]
            if not self.integer:
                mixed.append(F.softmax(queries @ keys.mT, dim=-1) @ values)
                continue
            key_scale, value_scale = (scales[part][:, si, None, None, None] for part in ("key", "value"))
            weights = F.softmax(queries @ self._codes(keys, key_scale).mT, dim=-1)
            mixed.append(self._mix(weights, values, value_scale, si))
        return torch.cat(mixed, dim=2)

    def _mix(self, weights: Tensor, values: Tensor, scale: Tensor, si: int) -> Tensor:
        """A V at the queries of stage `si`: [R, H, l, T], [R, H, T, d] -> [R, H, l, d]."""
        if self.shift_and_sum is None:
            return fake_attention(weights, self.recipe.weights, self.bits) @ self._codes(values, scale)
        shifts = kernel_shifts(weights, self.shift_and_sum.theta, self.shift_and_sum.places[si])
        weights = fake_attention(weights, self.recipe.weights, self.bits)
        return weights @ fake_values(values, scale, self.bits, shifts)

    def _magnitude(self, part: str, x: Tensor, level: Tensor, span: Span) -> Tensor:
        """a of each row and stage, [R, S], from x [R, H, l, d] or from calibration."""
        if self.magnitudes:
            return x.new_full((len(x), span.num_stages), self.magnitudes[part])
        return stage_maximum(x.detach().abs().amax((1, 3)), level, span.num_stages, paired=True)

    def _codes(self, x: Tensor, scale: Tensor) -> Tensor:
        return fake_affine(x, scale, 2.0 ** (self.bits - 1), self.bits, clips=bool(self.magnitudes))
