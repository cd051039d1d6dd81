"""Channel equalization: divide each input channel of a layer by a factor and multiply the layer's weights by it.

The function stays the same, and quantization gets easier where a few channels are much larger than the others
(SmoothQuant). It costs nothing at run time where the division folds into what makes the channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A channel that was all but silent during calibration may wake up later: no factor may be far from the others.
LARGEST_FACTOR = 64.0


@dataclass(frozen=True)
class Equalization:
    """Factors by the input that they divide (`StageFacts.equalizable`): float32 [C] each."""

    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def multiply(self, name: str, weight: Tensor) -> Tensor:
        """A weight [out, C] that reads the divided input; the same tensor if the input is not divided."""
        return weight * self.factors[name] if name in self.factors else weight

    def divide(self, name: str, rows: Tensor) -> Tensor:
        """What makes the input's channels, [C, ...], divided; the same tensor if the input is not."""
        if name not in self.factors:
            return rows
        return rows / self.factors[name].view(-1, *[1] * (rows.dim() - 1))

    def divide_parts(self, names: tuple[str | None, ...], rows: Tensor) -> Tensor:
        """What makes len(names) inputs of C channels each, [len(names) C, ...], divided; None is not divided."""
        if not self.factors:
            return rows
        parts = zip(names, rows.chunk(len(names)), strict=True)
        return torch.cat([part if name is None else self.divide(name, part) for name, part in parts])


NOT_EQUALIZED = Equalization()


def equalization_factors(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Factors a**alpha / w**(1 - alpha), scaled to a geometric mean of 1 (SmoothQuant, Eq. 4) and bounded.

    Args:
        activation: a, the largest |input| of each channel, float32 [C].
        weight: w, the largest |weight| that meets the channel, float32 [C].
        alpha: how much of the spread the weights take.
    Returns:
        float32 [C].
    """
    tiny = torch.finfo(torch.float32).tiny
    logs = alpha * activation.clamp_min(tiny).log() - (1 - alpha) * weight.clamp_min(tiny).log()
    # A channel that is always zero, or that no weight reads, keeps a factor near the others'.
    alive = (activation > tiny) & (weight > tiny)
    logs = torch.where(alive, logs, logs[alive].mean() if alive.any() else torch.zeros(()))
    return (logs - logs.mean()).exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
