"""Channel equalization: divide each input channel of a layer by a factor and multiply the layer's weights by it.

The function stays the same, and quantization gets easier where a few channels are much larger than the others
(SmoothQuant). It costs nothing at run time where the division folds into what makes the channel: into adaLN's scale and
shift for q, k, v, fc1 and the head, and into V's rows for proj.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nextscale.models.var.transformer import VAR, Block
from nextscale.models.weight import Weight

# A channel that was all but silent during calibration may wake up later: no factor may be far from the others.
LARGEST_FACTOR = 64.0


@dataclass(frozen=True)
class Equalization:
    """Factors by layer: float32 [C] for each of "blocks.{i}.attn.qkv", ".attn.proj", ".ffn.fc1" and "head"."""

    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def multiply(self, layer: str, weight: Tensor) -> Weight:
        """The layer's weight [out, C] for equalized inputs; the same tensor if the layer is not equalized."""
        return (lambda: weight * self.factors[layer]) if layer in self.factors else weight

    def divide(self, layer: str, rows: Tensor) -> Tensor:
        """What makes the layer's input channels, [C, ...], equalized; the same tensor if the layer is not."""
        if layer not in self.factors:
            return rows
        return rows / self.factors[layer].view(-1, *[1] * (rows.dim() - 1))


def equalizable_layers(var: VAR) -> dict[str, list[str]]:
    """For each layer that can be equalized at no cost, the linear layers of the stage graph that share its input."""
    layers = {}
    for i in range(var.config.depth):
        layers[f"blocks.{i}.attn.qkv"] = [f"blocks.{i}.attn.{part}" for part in "qkv"]
        layers[f"blocks.{i}.attn.proj"] = [f"blocks.{i}.attn.proj"]
        layers[f"blocks.{i}.ffn.fc1"] = [f"blocks.{i}.ffn.fc1"]
    return {**layers, "head": ["head"]}


def choose_equalization(var: VAR, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
    """Factors a**alpha / w**(1 - alpha), scaled to a geometric mean of 1 (SmoothQuant, Eq. 4) and bounded.

    Args:
        var: the model.
        magnitudes: for each layer of `equalizable_layers`, the largest |input| of each channel, a, float32 [C].
        alpha: how much of the spread the weights take; w is the largest |weight| that meets the channel.
    """
    factors = {}
    for layer, activation in magnitudes.items():
        weight = _weight(var, layer).abs().amax(dim=0)
        tiny = torch.finfo(torch.float32).tiny
        logs = alpha * activation.clamp_min(tiny).log() - (1 - alpha) * weight.clamp_min(tiny).log()
        # A channel that is always zero, or that no weight reads, keeps a factor near the others'.
        alive = (activation > tiny) & (weight > tiny)
        logs = torch.where(alive, logs, logs[alive].mean() if alive.any() else torch.zeros(()))
        factors[layer] = (logs - logs.mean()).exp().clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return Equalization(factors)


def _weight(var: VAR, layer: str) -> Tensor:
    """The torch weight [out, C] of a layer named as in `equalizable_layers`."""
    if layer == "head":
        return var.head.weight.detach()
    _, i, _, name = layer.split(".")
    block = var.blocks[int(i)]
    assert isinstance(block, Block)
    weights = {"qkv": block.attn.mat_qkv, "proj": block.attn.proj, "fc1": block.ffn.fc1}
    return weights[name].weight.detach()
