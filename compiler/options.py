"""How to build, and how a build tells where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nextscale.calib_data.choose_theta import ThetaChoice
from nextscale.calib_data.subjects import SampledImages
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime._session import SessionOptions
from nextscale.simulation.rounding import Rounding


class Progress(Protocol):
    """How a build tells where it is."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        """`step` begins, or has `done` of `total` images or steps."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        recipe: how to quantize.
        seed: of sampling.
        batch_size: images at a time.
        session: threads and memory.
        token_maps: sampled before; None samples the recipe's number of images.
        rounding: of a recipe with reconstructed weights.
        theta: of a recipe with shift-and-sum, chosen before; None chooses it from the model's own attention.
        count_overflow: let the graph count attentive tokens without a place.
        reduce_range: keep every pair of integer products within 16 bits, for CPUs without VNNI.
        fused: also write graphs of nextscale-ops' operators, over the same weights.
        encoder: also write the graph that makes token maps of pictures.
        text_encoder: also write the graph that makes features of prompts, where the source has one.
    """

    recipe: Recipe
    seed: int = 0
    batch_size: int = 2
    session: SessionOptions = field(default_factory=SessionOptions)
    token_maps: SampledImages | None = None
    rounding: Rounding | None = None
    theta: ThetaChoice | None = None
    count_overflow: bool = False
    reduce_range: bool = False
    fused: bool = True
    encoder: bool = True
    text_encoder: bool = True
