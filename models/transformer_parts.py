"""What the transformers of the families have in common: the K/V cache, the feed-forward part, adaLN before the head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
MAX_SCALE_MUL = math.log(100)


@dataclass
class KVCache:
    """Keys and values of the stages so far, float32 [B, H, T, d]; None before the first."""

    key: Tensor | None = None
    value: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append one stage's keys and values and return all of them."""
        self.key = key if self.key is None else torch.cat((self.key, key), dim=2)
        self.value = value if self.value is None else torch.cat((self.value, value), dim=2)
        return self.key, self.value


class FFN(nn.Module):
    """fc2(gelu(fc1(x))), tanh-GELU."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class HeadNorm(nn.Module):
    """adaLN before the head."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * embed_dim))

    def modulation(self, cond: Tensor) -> Tensor:
        """scale, shift as [B, 2, C], from the condition [B, C]."""
        return self.ada_lin(cond).unflatten(-1, (2, -1))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.modulation(cond).unsqueeze(1).unbind(2)
        return modulated(x, scale, shift)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """adaLN: the layer norm of x, without an affine part of its own, times 1 + scale, plus shift."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
