"""The encoder's facts for the passes: which linear layers one byte of each number is too coarse for."""

from __future__ import annotations

from nextscale.models.t5.encoder import T5Config


def wide_layers(config: T5Config) -> list[str]:
    """The names of the layers whose inputs take two bytes of each number: each block's wo.

    What the gates leave has values that are a hundred times as large as the others
    (docs/decisions/0014-text-encoder.md).
    """
    return [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in range(config.depth)]
