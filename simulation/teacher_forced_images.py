"""Images whose tokens a twin is fed, all stages at once: what calibration and reconstruction see of a family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.equalization import NOT_EQUALIZED, Equalization
from nextscale.simulation.simulated_model import SimulatedModel

if TYPE_CHECKING:
    from typing_extensions import Self

# The model itself, as a recipe.
FULL_PRECISION = Recipe("full precision", precision="fp32")
# The numbers of some images, int64 [B]: all of one size.
Pick = NDArray[np.int64]


class TeacherForcedImages(Protocol):
    """N images and the full-precision model whose tokens they are."""

    @property
    def cfg_scale(self) -> float:
        """Guidance, which the head's input depends on."""

    @property
    def device(self) -> torch.device:
        """The model's."""

    @property
    def facts(self) -> StageFacts:
        """Of the stage graph."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Which images have the same stages, and so can be run together: equal numbers, int64 [N]."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, images: slice) -> Self:
        """Some of them."""

    def digest(self) -> str:
        """What tells these images from others."""

    def twin(
        self,
        recipe: Recipe,
        *,
        ranges: Mapping[str, Range] | None = None,
        equalization: Equalization = NOT_EQUALIZED,
        shift_and_sum: ShiftAndSum | None = None,
    ) -> SimulatedModel:
        """The model quantized as a recipe says; arguments as `SimulatedModel` takes them."""

    def choose_equalization(self, magnitudes: Mapping[str, Tensor], alpha: float) -> Equalization:
        """Factors by the largest |input| of channels, for each input of `StageFacts.equalizable`."""

    def given(self, twin: Any, pick: Pick) -> tuple[Any, Any]:
        """Condition and span of some images of one size, as the twin's units take them."""

    def embed(self, twin: Any, pick: Pick, condition: Any, span: Any) -> Tensor:
        """The transformer's input of these images, [2B, L, C]: the first unit's."""

    def reference(self, pick: Pick) -> Tensor:
        """Guided logits of full precision, [B, L, ...]."""

    def compare(self, expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """KL of each token's distributions, nats, and how much of it is equal, of logits: float64 [B, L] each."""

    def stage_tokens(self, image: int) -> tuple[int, ...]:
        """Tokens of each of an image's stages."""


def teacher_forced(images: TeacherForcedImages, twin: SimulatedModel, pick: Pick) -> Tensor:
    """Guided logits of a twin, [B, L, ...], of images of one size."""
    condition, span = images.given(twin, pick)
    x = images.embed(twin, pick, condition, span)
    for run in twin.units(images.cfg_scale).values():
        x = run(twin, x, condition, span)
    return x


def batches(images: TeacherForcedImages, batch_size: int) -> Iterator[Pick]:
    """All images, at most so many at a time, those of one size together."""
    for size in np.unique(images.sizes):
        of_size = np.flatnonzero(images.sizes == size)
        for first in range(0, len(of_size), batch_size):
            yield of_size[first : first + batch_size]
