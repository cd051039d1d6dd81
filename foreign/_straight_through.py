"""Rounding that is learned by steps of a weight of which only the rounded value computes (straight-through)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.qparams import QuantizedWeight, WeightQParams

# How far a weight may start from its code: half a step is where it would round to the next one.
LEANING = 0.45


class StraightThroughRounding:
    """Codes clip(round(u), qmin, qmax) of one layer, which start at codes that are good already.

    u starts on the float weight's side of them, so that codes that went the wrong way are the first to change back.

    Attributes:
        u: float32 [out, in], in steps of the quantizer.
    """

    def __init__(self, weight: NDArray[np.float32], qparams: WeightQParams, start: QuantizedWeight) -> None:
        """Of a float weight [out, in], beginning at codes [in, out]."""
        self.qparams = qparams
        self.scale, self.qmin, self.qmax = (
            torch.from_numpy(np.asarray(field, np.float32))[:, None]
            for field in (qparams.scale, qparams.qmin, qparams.qmax)
        )
        codes = torch.from_numpy(start.codes.T.astype(np.float32))
        aside = (torch.from_numpy(weight) / self.scale - codes).clamp(-0.5, 0.5) * (2 * LEANING)
        self.u = (codes + aside).requires_grad_()

    @torch.no_grad()
    def weight(self) -> Tensor:
        """What the layer computes with, [in, out]."""
        return (self._codes() * self.scale).T

    def push(self, slope: Tensor) -> None:
        """Take the slope of `weight` for that of u."""
        self.u.grad = slope.T * self.scale

    @torch.no_grad()
    def coded(self) -> QuantizedWeight:
        """Codes [in, out]."""
        codes = self._codes().T.contiguous().numpy().astype(np.int8)
        return QuantizedWeight(codes, self.qparams.scale, self.qparams.qmin)

    def _codes(self) -> Tensor:
        return torch.clamp(self.u.round(), self.qmin, self.qmax)
