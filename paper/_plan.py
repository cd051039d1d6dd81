"""What a command of the paper has left to do, row by row, and about what that takes; told before anything begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nextscale.paper._estimated_time import build_seconds
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle

# What a row's seconds are taken from.
Basis = Literal["its own batch", "full precision's batch", "operations"]
# What is left of several tables' rows: how many pictures, token maps that are compared, images with attention.
PICTURES, COMPARED, OBSERVED = "pictures", "compared", "observed"


@dataclass(frozen=True)
class PlannedStep:
    """What is left to do of a row or a figure.

    Attributes:
        name: of it.
        left: how many of what, such as {"pictures": 5000}; nothing where all is in the store.
        seconds: about how long that takes, with the build of its bundle but without learning its rounding.
        basis: what they are taken from.
        builds: whether its bundle is to be built.
        learns: whether rounding is to be learned for that.
        bytes: about how much the store gains by the bundle.
    """

    name: str
    left: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    basis: Basis = "operations"
    builds: bool = False
    learns: bool = False
    bytes: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether all of it is in the store."""
        return not self.builds and not self.left


class Pace:
    """How long a row takes for one picture: by a batch of its bundle, or else as full precision.

    Args:
        original: full precision; where its bundle is not there, operations tell.
        batch: draws a batch with a bundle and returns seconds of a picture.
        images: as many take as long as one of these pictures, whose photograph perhaps is edited in several ways.
    """

    def __init__(
        self, original: RecipeBundle | UnbuiltBundle, batch: Callable[[RecipeBundle], float], images: float = 1.0
    ) -> None:
        self._original, self._batch, self._images = original, batch, images
        self._tried = dict[str, float]()

    def of(self, item: RecipeBundle | UnbuiltBundle) -> tuple[float, Basis]:
        """Seconds of a picture, and what they are taken from."""
        if isinstance(item, RecipeBundle):
            if item.name not in self._tried:
                self._tried[item.name] = self._batch(item)
            return self._tried[item.name], "its own batch"
        return self.of_original()

    def of_original(self) -> tuple[float, Basis]:
        """Seconds of a picture in full precision, for what has no bundle of its own."""
        if isinstance(self._original, RecipeBundle):
            return self.of(self._original)[0], "full precision's batch"
        return self._original.image * self._images, "operations"

    def step(
        self,
        item: RecipeBundle | UnbuiltBundle,
        left: Mapping[str, int],
        *,
        name: str | None = None,
    ) -> PlannedStep:
        """A row's; nothing is drawn for one that is finished.

        Args:
            item: its bundle.
            left: how many pictures, or what takes as long as one, are to be made; those that are finished count 0.
            name: of a row that shares the bundle of one before; None: the bundle's.
        """
        left = {what: count for what, count in left.items() if count > 0}
        if not left and not _builds(item, name):
            return PlannedStep(name or item.name)
        picture, basis = self.of(item)
        return row_step(item, left, picture * sum(left.values()), picture / self._images, name=name, basis=basis)


def row_step(
    item: RecipeBundle | UnbuiltBundle,
    left: Mapping[str, int],
    seconds: float,
    image: float,
    *,
    name: str | None = None,
    basis: Basis = "operations",
) -> PlannedStep:
    """A row's, whose bundle is built before if it is not there.

    Args:
        item: its bundle.
        left: how many of what; those that are finished count 0.
        seconds: that these take.
        image: seconds of an image in full precision.
        name: of a row that shares the bundle of one before; None: the bundle's.
        basis: what the seconds are taken from.
    """
    left = {what: count for what, count in left.items() if count > 0}
    if not _builds(item, name):
        return PlannedStep(name or item.name, left, seconds, basis)
    assert isinstance(item, UnbuiltBundle)
    seconds += build_seconds(item.recipe, image)
    return PlannedStep(item.name, left, seconds, basis, True, item.learns, item.bytes)


def _builds(item: RecipeBundle | UnbuiltBundle, name: str | None) -> bool:
    return name is None and isinstance(item, UnbuiltBundle)
