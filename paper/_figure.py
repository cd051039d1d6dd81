"""What the paper's figures have in common: a model's bundles, what a run asks for, and what a figure is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nextscale.compiler.options import Progress
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.lpips import Lpips
from nextscale.evaluate.reference_statistics import Reference
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper._quality import pictures_folder
from nextscale.paper._rows import saturation_line
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, RecipeBundles, model_name
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import Writer

DPI = 120
# Lines tell apart in grey, too: by their markers.
STYLES: Mapping[str, Mapping[str, str]] = {
    "brecq": {"color": "tab:blue", "marker": "o"},
    "litevar": {"color": "tab:green", "marker": "^"},
    "ours": {"color": "tab:red", "marker": "s"},
    "default": {"color": "black", "marker": "D"},
}
# Recipes that differ from another in the budget alone, on which rounding does not depend: its file serves them, too.
LEARNED_AS = dict.fromkeys(("budget-0.25-w4a6", "budget-0.5-w4a6", "budget-2-w4a6", "budget-5-w4a6"), "ours-w4a6")


class FigureLeftOut(NextscaleError):
    """A figure cannot be made of what is there; the message says why."""


@dataclass(frozen=True)
class Figure:
    """A figure that was made.

    Attributes:
        writer: of its PNG.
        numbers: what it shows, plain values.
    """

    writer: Writer
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """How much is measured for the figures.

    Attributes:
        seed: of pictures and token maps.
        images: pictures of each row of the figures that show IS and FID.
        observed: images that attention is observed on.
        samples: calibration samples of the codebook's frequencies.
        pictures: that the sheets show of each row.
        block: of which the error of A V is shown, from 0; None: the mean over blocks.
        batch_size: pictures at a time.
        calibration_images: at most so many for each recipe; None: its own number.
    """

    seed: int = 0
    images: int = 5000
    observed: int = 16
    samples: int = 256
    pictures: int = 8
    block: int | None = None
    batch_size: int = 8
    calibration_images: int | None = None


@dataclass(frozen=True)
class Judges:
    """What measures pictures; None where no figure that is asked for needs it.

    Attributes:
        network: of IS and FID.
        classifier: of ImageNet's 1000 classes, for editing by class.
        reference: real pictures; None: distances are to full precision's.
        distances: LPIPS, by the network's name.
    """

    network: ImageNetwork | None = None
    classifier: ImageNetwork | None = None
    reference: Reference | None = None
    distances: Mapping[str, Lpips] = field(default_factory=dict)


@dataclass(frozen=True)
class Workshop:
    """What a figure is made with.

    Attributes:
        bundles: of one model.
        session: threads, memory and operators.
        work: where what is measured is kept; to make figures it has to exist.
        settings: how much is measured.
        judges: of pictures.
        photographs: to be edited; None: none.
        tell: told each step.
        left_out: lines on what is missing of the figure.
        warnings: lines on rows whose integer products this processor does not compute exactly.
    """

    bundles: RecipeBundles
    session: SessionOptions
    work: Path
    settings: Settings
    judges: Judges
    photographs: Path | None
    tell: Progress
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def original(self) -> RecipeBundle:
        """Full precision."""
        return self.bundles.build(paper_recipe(FULL_PRECISION), self.tell)

    @property
    def statistics(self) -> Path:
        """Where those of so many pictures are kept; it may have to be made."""
        return pictures_folder(self.work, self.settings.images)

    @property
    def model_name(self) -> str:
        """For titles."""
        return model_name(self.original.bundle)

    def recipe(self, name: str) -> Recipe:
        """A recipe, with as few calibration images as are asked for, and perhaps with another's rounding."""
        found = paper_recipe(name)
        if found.name == FULL_PRECISION:
            return found
        found = with_fewer_images(found, self.settings.calibration_images)
        if name in LEARNED_AS and self.bundles.missing(found) is not None:
            return replace(found, name=LEARNED_AS[name])
        return found

    def found(self, names: Iterable[str]) -> dict[str, RecipeBundle]:
        """The recipes' bundles, built where they are not there; those that cannot be built get a line."""
        found = {}
        for name in names:
            bundle = self._bundle(name)
            if bundle is not None:
                found[name] = bundle
        return found

    def generator(self, item: RecipeBundle) -> Generator:
        """Runs the bundle; a line where this processor does not compute its integer products exactly."""
        generator = Generator(item.bundle, self.session)
        line = saturation_line(item.name, generator)
        if line is not None and line not in self.warnings:
            self.warnings.append(line)
        return generator

    def counted(self, step: str, total: int) -> Callable[[int], object]:
        """Tells how many of a step's images are done."""
        return lambda done: self.tell(step, done, total)

    def _bundle(self, name: str) -> RecipeBundle | None:
        if name == FULL_PRECISION:
            return self.original
        found = self.bundles.built_or_why(self.recipe(name), self.tell)
        if isinstance(found, str):
            self._leave_out(found)
            return None
        return RecipeBundle(name, found.bundle)

    def _leave_out(self, line: str) -> None:
        if line not in self.left_out:
            self.left_out.append(line)


def rounded(values: Any) -> Any:
    """Arrays as lists of numbers with six digits; None where there is none."""
    if hasattr(values, "tolist"):
        return rounded(values.tolist())
    if isinstance(values, list | tuple):
        return [rounded(value) for value in values]
    if isinstance(values, float):
        return None if values != values else float(f"{values:.6g}")
    return values
