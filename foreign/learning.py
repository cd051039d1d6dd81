"""How long and how carefully the rounding of residual blocks is learned; without torch, so that help is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLearning:
    """How to learn.

    Attributes:
        iterations: steps a block; 0: each layer is rounded by itself.
        batch_size: samples a step.
        reach: how far a weight can go on the way, in steps of its quantizer.
        held_out: share of the samples that only the comparison sees.
        seed: of the order of the samples.
    """

    iterations: int = 100
    batch_size: int = 4
    reach: float = 0.2
    held_out: float = 1 / 8
    seed: int = 0
