"""Fake quantizers: what integer codes stand for, as float32, with gradients that pass straight through the rounding.

Each is one entry of docs/quantization.md in torch. `M = 2**bits - 1`. Rows R are 2B, first those with the class; an
image is the rows r and r + B. `level` tells the stage of each of the l tokens, int64 [l], among S.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nextscale.graph_passes._dynamic_ranges import LEAST_SCALE
from nextscale.graph_passes.expand_attentive_tokens import FINEST, GRID
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_attention import POWERS
from nextscale.graph_passes.recipe import AttentionWeights

# Kernel orders n = 2**(m - 1) up to 64.
LARGEST_SHIFT = FINEST.bit_length() - 1


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | float, qmax: int, clips: bool) -> Tensor:
        codes = (x / scale).round_().add_(zero_point)
        ctx.clips = clips
        if clips:
            ctx.save_for_backward((codes >= 0) & (codes <= qmax))
        return codes.clamp_(0, qmax).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if ctx.clips:
            gradient = gradient * ctx.saved_tensors[0]
        return gradient, None, None, None, None


def fake_affine(x: Tensor, scale: Tensor, zero_point: Tensor | float, bits: int, *, clips: bool) -> Tensor:
    """scale * (clip(round(x / scale) + zero_point, 0, M) - zero_point) (Eq. 1, 3).

    Args:
        x: float32 of any shape.
        scale, zero_point: float32, broadcast against x.
        clips: whether x may lie outside the range; its gradient is zero there.
    """
    found: Tensor = _Affine.apply(x, scale, zero_point, 2**bits - 1, clips)
    return found


def affine_qparams(minimum: Tensor, maximum: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Eq. 2 of ranges widened to hold zero: scale and zero point, float32 of the same shape."""
    low, high = minimum.clamp_max(0), maximum.clamp_min(0)
    scale = normal((high - low) / (2**bits - 1))
    return scale, (-low / scale).round().clamp(0, 2**bits - 1)


def symmetric_scale(magnitude: Tensor, bits: int) -> Tensor:
    """s = 2a / M of q, k and v, whose zero point is 2**(bits - 1)."""
    return normal(magnitude * (2 / (2**bits - 1)))


def normal(scale: Tensor) -> Tensor:
    """The same, or LEAST_SCALE where it is less."""
    return scale.clamp_min(LEAST_SCALE)


def of_image(rows: Tensor, paired: bool) -> Tensor:
    """The largest of both rows of each image, for each row: [R, ...] -> [R, ...]; unpaired rows are images."""
    if not paired:
        return rows
    largest = torch.maximum(*rows.chunk(2))
    return torch.cat((largest, largest))


def stage_maximum(tokens: Tensor, level: Tensor, num_stages: int, paired: bool) -> Tensor:
    """The largest value of each image and stage, and zero: [R, l] -> [R, S]."""
    rows = tokens.new_zeros(len(tokens), num_stages)
    return of_image(rows.scatter_reduce(1, level.expand(len(tokens), -1), tokens, "amax"), paired)


class InputQuantizer(Protocol):
    """How the input of a linear layer is quantized."""

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        """float32 [R, l, C] -> the same; `paired` says that r and r + B are one image, else each row is one."""


class FloatInput:
    """Not quantized."""

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        return x


class StaticInput:
    """One range for each stage, or for all: `tensor` and `stage`."""

    def __init__(self, observed: Range, bits: int, device: torch.device) -> None:
        self.bits = bits
        low, high = (torch.from_numpy(end).to(device) for end in (observed.minimum, observed.maximum))
        self.scale, self.zero_point = affine_qparams(low, high, bits)

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        scale, zero_point = self.scale, self.zero_point
        if len(scale) > 1:
            scale, zero_point = (field[level][:, None] for field in (scale, zero_point))
        return fake_affine(x, scale, zero_point, self.bits, clips=True)


class PairInput:
    """Of the row without the class and of the difference that the class makes, a static range each: `pair`."""

    def __init__(self, uncond: StaticInput, difference: StaticInput) -> None:
        self.uncond, self.difference = uncond, difference

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        assert paired
        cond, uncond = x.chunk(2)
        u, d = self.uncond(uncond, level, False), self.difference(cond - uncond, level, False)
        return torch.cat((u + d, u))


class ImageInput:
    """Dynamic min-max over both rows and all tokens of an image at one stage: `image`."""

    def __init__(self, bits: int, num_stages: int) -> None:
        self.bits, self.num_stages = bits, num_stages

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        with torch.no_grad():
            minimum, maximum = x.aminmax(dim=-1)
            below = stage_maximum(-minimum, level, self.num_stages, paired)
            above = stage_maximum(maximum, level, self.num_stages, paired)
            scale, zero_point = (field[:, level, None] for field in affine_qparams(-below, above, self.bits))
        return fake_affine(x, scale, zero_point, self.bits, clips=False)


class TokenInput:
    """Dynamic, each token by itself, with a fixed zero point: `token`."""

    def __init__(self, bits: int, zero_point: int) -> None:
        self.bits, self.zero_point = bits, zero_point

    def __call__(self, x: Tensor, level: Tensor, paired: bool) -> Tensor:
        with torch.no_grad():
            minimum, maximum = x.aminmax(dim=-1, keepdim=True)
            qmax = 2**self.bits - 1
            scale = normal(torch.maximum(maximum / (qmax - self.zero_point), -minimum / self.zero_point))
        return fake_affine(x, scale, float(self.zero_point), self.bits, clips=False)


def fake_attention(
    weights: Tensor, kind: AttentionWeights, bits: int, visible: Tensor | None = None, *, paired: bool = True
) -> Tensor:
    """A as its codes count in the product with V, normalised where the recipe does.

    Args:
        weights: A, float32 [R, H, l, T].
        kind: the quantizer's name.
        bits: of the codes.
        visible: bool, broadcast against A; what is not has no weight, whatever the least code stands for.
        paired: whether r and r + B are one image, else each row is one.
    """
    with torch.no_grad():
        quantized = _quantized_attention(weights.detach(), kind, bits, visible, paired)
    found: Tensor = _StraightThrough.apply(weights, quantized)
    return found


def _quantized_attention(
    weights: Tensor, kind: AttentionWeights, bits: int, visible: Tensor | None, paired: bool
) -> Tensor:
    qmax = 2**bits - 1
    if kind == "uniform":
        return (weights * qmax).round_().div_(qmax)
    row_maximum = weights.amax(-1, keepdim=True)
    if kind == "row":
        codes = (weights * qmax / row_maximum).round_()
        return codes.div_(codes.sum(-1, keepdim=True))
    scale = row_maximum
    if kind == "log2":
        scale = of_image(row_maximum.amax((1, 2, 3)), paired)[:, None, None, None]
    exponents = (weights / scale).log2_().neg_().round_().clamp_(0, qmax)  # Eq. 4
    is_zero = exponents - exponents.amin(-1, keepdim=True) >= POWERS
    if visible is not None:
        is_zero = is_zero | ~visible
    powers = exponents.neg_().exp2_().masked_fill_(is_zero, 0)
    return powers.mul_(scale) if kind == "log2" else powers.div_(powers.sum(-1, keepdim=True))


def kernel_shifts(weights: Tensor, theta: float, places: int) -> Tensor:
    """m of each token at one stage's queries, 0 for those that are not attentive: [R, H, l, T] -> float32 [R, H, T].

    Score (Eq. 11) above theta makes a token attentive, with order n = 2**(m - 1) (Eq. 14); of more than `places` the
    highest scores win, the first among equals. m is at most LARGEST_SHIFT.
    """
    score = weights.detach().mean(dim=2)
    # ceil(log2(score / theta)) is how many of theta, 2 theta, 4 theta, ... lie below the score.
    doublings = torch.arange(LARGEST_SHIFT, dtype=torch.float32, device=score.device).exp2_()
    shifts = torch.bucketize(score, doublings * theta).float()
    if places >= score.shape[-1]:
        return shifts
    winners = score.sort(dim=-1, descending=True, stable=True).indices[..., :places]
    return torch.zeros_like(shifts).scatter_(-1, winners, shifts.gather(-1, winners))


def fake_values(values: Tensor, scale: Tensor, bits: int, shifts: Tensor) -> Tensor:
    """V under shift-and-sum: F / 2n for attentive tokens, v_hat for the others (Theorem 1, Eq. 9).

    Args:
        values: float32 [R, H, T, d].
        scale: s_v, broadcast against values.
        bits: of the codes.
        shifts: m, float32 [R, H, T]; 2n = 2**m, and m = 0 is plain rounding.
    """
    with torch.no_grad():
        qmax, zero_point = 2**bits - 1, 2 ** (bits - 1)
        fine = (values * (GRID / scale)).round_().div_(GRID).add_(zero_point).clamp_(-1, qmax + 1)
        copies = shifts.exp2()[..., None]
        sums = fine.mul_(copies).add_(0.5).floor_()
        codes = torch.minimum(sums.clamp_min_(0), copies * qmax).div_(copies)
        quantized = codes.sub_(zero_point).mul_(scale)
    found: Tensor = _StraightThrough.apply(values, quantized)
    return found
