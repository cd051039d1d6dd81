"""Which factors equalize an Infinity's channels, and what they meet (`models/equalization.py`).

The division folds into adaLN's scale and shift for self-attention's q, k, v, fc1 and the head, into ca_norm for
cross-attention's q, into V's rows for both proj, and into text_proj_for_ca for keys and values of the text.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.models.equalization import Equalization, equalization_factors
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.transformer import Infinity


def choose_equalization(
    infinity: Infinity, facts: StageFacts, magnitudes: Mapping[str, Tensor], alpha: float
) -> Equalization:
    """Factors for inputs of linear layers (`equalization_factors`).

    Args:
        infinity: the model.
        facts: of its stage graph.
        magnitudes: for each input of `StageFacts.equalizable`, the largest |input| of each channel, float32 [C].
        alpha: how much of the spread the weights take.
    """
    folded, readers, factors = FoldedInfinity(infinity), facts.equalizable(), {}
    for name, activation in magnitudes.items():
        largest = activation.new_zeros(len(activation))
        for layer in readers[name]:
            weight = folded.weight(layer)
            weight = weight if isinstance(weight, Tensor) else weight()
            largest = largest.maximum(weight.abs().amax(dim=0))
        factors[name] = equalization_factors(activation, largest, alpha)
    return Equalization(factors)
