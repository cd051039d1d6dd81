"""What is done about wo, whose input has values that are a hundred times as large as its others.

docs/decisions/0014-text-encoder.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.models.t5.encoder import T5Config

# A channel that is smaller than others by more has no part in the result.
MAX_EXPONENT = 12


def wide_layers(config: T5Config) -> list[str]:
    """The names of the layers whose inputs take two bytes of each number: each block's wo."""
    return [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(config.depth)]


def channel_factors(wo: Tensor) -> Tensor:
    """Powers of two that make the columns of a weight [out, in] about equally large: float32 [in].

    wo(gates) = (wo factors)(gates / factors), to the last bit. The 15 bits of an input hold how large a channel is
    better than the 8 bits of a weight whose columns share their scales. The division is of rows of wi_1, each of which
    has a scale of its own.
    """
    largest = wo.float().abs().amax(0)
    used = largest > 0
    exponent = torch.zeros_like(largest)
    exponent[used] = torch.log2(largest[used].median() / largest[used]).round().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp2(exponent)
