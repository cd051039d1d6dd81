"""How long and how carefully reconstruction learns; without torch, so that a command's help is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReconstructionSettings:
    """How to learn.

    Attributes:
        iterations: steps a unit.
        batch_size: images per step.
        learning_rate: Adam's, on V.
        regularization: weight of the mean of `undecided` beside the error relative to rounding to nearest.
        warm_up: share of the steps without it.
        beta: its exponent, annealed from the first to the second value.
        held_out: share of the token maps that only the comparison sees.
        seed: of the order of the images.
    """

    iterations: int = 1000
    batch_size: int = 16
    learning_rate: float = 0.1
    regularization: float = 256.0
    warm_up: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    held_out: float = 1 / 8
    seed: int = 0
