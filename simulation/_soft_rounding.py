"""AdaRound's continuous rounding of one layer (Nagel et al., 2020), as block reconstruction learns it (BRECQ)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.qparams import WeightQParams
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

ZETA, GAMMA = 1.1, -0.1


class SoftRounding:
    """Weights s * clip(floor(w / s) + h(V), qmin, qmax) with h(V) in [0, 1], which starts at w / s - floor(w / s).

    Attributes:
        logits: V, float32 [out, in], with gradients.
    """

    def __init__(self, weight: Tensor, qparams: WeightQParams) -> None:
        """Of a float weight [out, in]."""
        self.scale, self.qmin, self.qmax = (
            torch.from_numpy(field.astype(np.float32)).to(weight.device)[:, None]
            for field in (qparams.scale, qparams.qmin, qparams.qmax)
        )
        steps = weight / self.scale
        self.floor = steps.floor()
        rest = steps - self.floor
        self.logits = (-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)).requires_grad_()

    def share_up(self) -> Tensor:
        """h(V), the rectified sigmoid."""
        return (self.logits.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self, share_up: Tensor) -> Tensor:
        """What the layer computes with, [out, in]."""
        return torch.clamp(self.floor + share_up, self.qmin, self.qmax) * self.scale

    @torch.no_grad()
    def up(self) -> NDArray[np.bool_]:
        """The decision: whether each weight is rounded up, bool [out, in]."""
        return (self.share_up() >= 0.5).cpu().numpy()


def undecided(share_up: Tensor, beta: float) -> Tensor:
    """How far from 0 and 1 on average, 1 - |2h - 1|**beta (AdaRound, Eq. 24): [out, in] -> []."""
    return (1 - (2 * share_up - 1).abs().pow(beta)).mean()


def regularizer(shares: Mapping[str, Tensor], progress: float, settings: ReconstructionSettings) -> Tensor:
    """The weighted mean of `undecided` over layers, after the warm-up with an exponent that falls linearly."""
    done = (progress - settings.warm_up) / (1 - settings.warm_up)
    if done < 0:
        return torch.zeros((), device=next(iter(shares.values())).device)
    first, final = settings.beta
    beta = first + (final - first) * done
    return settings.regularization * torch.stack([undecided(share, beta) for share in shares.values()]).mean()
