"""The paper's figures by name: what each shows, of which recipes, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nextscale.measure.provenance import finite, versions
from nextscale.paper import (
    figure_attention_error,
    figure_budget,
    figure_editing,
    figure_frequencies,
    figure_kernel,
    figure_operations,
    figure_pictures,
)
from nextscale.paper._estimated_time import EDITING_IMAGES, SCORING_IMAGES
from nextscale.paper._figure import Figure, Settings, Workshop
from nextscale.paper._plan import OBSERVED
from nextscale.paper.recipe_bundles import FULL_PRECISION
from nextscale.runtime._machine import describe_machine


@dataclass(frozen=True)
class Anew:
    """What is made for a figure each time that it is drawn.

    Attributes:
        what, count: what is made, and how many of it.
        pictures: as many take as long as one of it.
    """

    what: str
    count: int
    pictures: float = 1.0


@dataclass(frozen=True)
class FigureKind:
    """A figure of the paper.

    Attributes:
        title: what it shows.
        paper: the model that the paper shows it of.
        recipes: whose bundles it is made of, besides full precision's.
        make: makes it, or raises `_figure.FigureLeftOut`.
        observes: recipes of which the error of attention's product is observed.
        samples: whether it shows the codebook's frequencies in calibration samples.
        anew: what is made each time, with so many recipes beside full precision.
        judged: whether it shows IS and FID.
        edits: whether it needs photographs.
    """

    title: str
    paper: str
    recipes: tuple[str, ...]
    make: Callable[[Workshop], Figure]
    observes: tuple[str, ...] = ()
    samples: bool = False
    anew: Callable[[Settings, int], Anew] | None = None
    judged: bool = False
    edits: bool = False


def _sheet(settings: Settings, rows: int) -> Anew:
    return Anew("for the sheet", settings.pictures * (rows + 1))


FIGURES: Mapping[str, FigureKind] = {
    "1a": FigureKind(
        "error of attention times values by stage, BRECQ",
        "a block of VAR-d16 and one of VAR-d20",
        (figure_attention_error.BASELINE,),
        figure_attention_error.figure_1a,
        observes=(figure_attention_error.BASELINE,),
    ),
    "1b": FigureKind(
        "frequencies of codebook entries as sampled",
        "VAR-d24, 256 samples, 100 entries",
        (),
        figure_frequencies.figure_1b,
        samples=True,
    ),
    "2": FigureKind(
        "attentive tokens by stage, and the quantization kernel",
        "VAR-d16",
        (),
        figure_kernel.figure_2,
        anew=lambda settings, rows: Anew(OBSERVED, settings.observed, SCORING_IMAGES),
    ),
    "5": FigureKind(
        "error of attention times values, and IS and FID by budget",
        "VAR-d16 and VAR-d20",
        figure_budget.RECIPES,
        figure_budget.figure_5,
        observes=figure_attention_error.RECIPES,
        judged=True,
    ),
    "6": FigureKind(
        "frequencies of codebook entries before and after resampling",
        "a model that its caption does not name",
        (),
        figure_frequencies.figure_6,
        samples=True,
    ),
    "A": FigureKind("pictures at 6/6 bits", "VAR-d16", figure_pictures.METHODS, figure_pictures.figure_a, anew=_sheet),
    "B": FigureKind(
        "pictures at 6/6 bits, the first two stages full precision's",
        "VAR-d16",
        figure_pictures.METHODS,
        figure_pictures.figure_b,
        anew=_sheet,
    ),
    "D": FigureKind(
        "edited photographs at 6/6 bits",
        "VAR-d30",
        figure_editing.RECIPES,
        figure_editing.figure_d,
        anew=lambda settings, rows: Anew("photographs", figure_editing.PHOTOGRAPHS * (rows + 2), EDITING_IMAGES),
        edits=True,
    ),
    "E": FigureKind("pictures of Ours by bits", "VAR-d30", figure_pictures.BITS, figure_pictures.figure_e, anew=_sheet),
    "F": FigureKind(
        "IS and FID by bit operations",
        "VAR-d30",
        figure_operations.RECIPES,
        figure_operations.figure_f,
        judged=True,
    ),
}


def recipes_of(names: Sequence[str]) -> list[str]:
    """Full precision, and each recipe that the figures of these names show."""
    return list(dict.fromkeys([FULL_PRECISION, *(recipe for name in names for recipe in FIGURES[name].recipes)]))


def file_stem(name: str) -> str:
    """Of a figure's files: figure_1a."""
    return f"figure_{name}"


def document(workshop: Workshop, name: str, figure: Figure) -> dict[str, Any]:
    """A figure's JSON: its numbers, and what they are of."""
    manifest, kind, settings = workshop.original.bundle.manifest, FIGURES[name], workshop.settings
    plain: dict[str, Any] = finite(
        {
            "figure": name,
            "title": kind.title,
            "of": workshop.model_name,
            "paper_is_of": kind.paper,
            "image_size": list(manifest.model.image_size),
            "settings": asdict(settings) | {"block": None if settings.block is None else settings.block + 1},
            "left_out": workshop.left_out,
            "warnings": workshop.warnings,
            "numbers": figure.numbers,
            "machine": asdict(describe_machine()),
            "versions": versions(),
        }
    )
    return plain
