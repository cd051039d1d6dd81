"""Which factors equalize a VAR's channels, and what they meet (`models/equalization.py`).

The division folds into adaLN's scale and shift for q, k, v, fc1 and the head, and into V's rows for proj.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nextscale.models.equalization import Equalization, equalization_factors
from nextscale.models.var.transformer import VAR, Block


def choose_equalization(var: VAR, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
    """Factors for inputs of linear layers (`equalization_factors`).

    Args:
        var: the model.
        magnitudes: for each input of `StageFacts.equalizable`, the largest |input| of each channel, a, float32 [C].
        alpha: how much of the spread the weights take.
    """
    return Equalization(
        {
            layer: equalization_factors(activation, _weight(var, layer).abs().amax(dim=0), alpha)
            for layer, activation in magnitudes.items()
        }
    )


def _weight(var: VAR, layer: str) -> Tensor:
    """The torch weight [out, C] that reads an input named as in `StageFacts.equalizable`."""
    if layer == "head":
        return var.head.weight.detach()
    _, i, _, name = layer.split(".")
    block = var.blocks[int(i)]
    assert isinstance(block, Block)
    weights = {"qkv": block.attn.mat_qkv, "proj": block.attn.proj, "fc1": block.ffn.fc1}
    return weights[name].weight.detach()
