"""The paper's figures by name: what each shows, of which recipes, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nextscale.evaluate.generated_statistics import Sampling, finished_images
from nextscale.graph_passes.recipe import Recipe
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
from nextscale.paper._estimated_time import (
    EDITING_IMAGES,
    SCORING_IMAGES,
    build_seconds,
    observing_seconds,
    picture_seconds,
)
from nextscale.paper._figure import Figure, Settings, Workshop
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._next_scale_loop import Generator


@dataclass(frozen=True)
class FigureKind:
    """A figure of the paper.

    Attributes:
        title: what it shows.
        paper: the model that the paper shows it of.
        recipes: whose bundles it is made of, besides full precision's.
        make: makes it, or raises `_figure.FigureLeftOut`.
        passes: how many pictures' worth of full precision's time it takes with so many recipes, beside what follows and
            the building of bundles.
        compared: of how many recipes, at most, the attention of the observed images is compared.
        judged: whether it shows IS and FID.
        edits: whether it needs photographs.
    """

    title: str
    paper: str
    recipes: tuple[str, ...]
    make: Callable[[Workshop], Figure]
    passes: Callable[[Settings, int], float]
    compared: int = 0
    judged: bool = False
    edits: bool = False


# A picture whose logits are kept takes longer.
SAMPLED = 1.3


def _observed(settings: Settings, rows: int) -> float:
    return float(settings.observed)


def _sampled(settings: Settings, rows: int) -> float:
    return SAMPLED * settings.samples


def _shown(settings: Settings, rows: int) -> float:
    return float(settings.pictures * (rows + 1))


FIGURES: Mapping[str, FigureKind] = {
    "1a": FigureKind(
        "error of attention times values by stage, BRECQ",
        "a block of VAR-d16 and one of VAR-d20",
        (figure_attention_error.BASELINE,),
        figure_attention_error.figure_1a,
        _observed,
        compared=1,
    ),
    "1b": FigureKind(
        "frequencies of codebook entries as sampled",
        "VAR-d24, 256 samples, 100 entries",
        (),
        figure_frequencies.figure_1b,
        _sampled,
    ),
    "2": FigureKind(
        "attentive tokens by stage, and the quantization kernel",
        "VAR-d16",
        (),
        figure_kernel.figure_2,
        lambda settings, rows: float(SCORING_IMAGES * settings.observed),
    ),
    "5": FigureKind(
        "error of attention times values, and IS and FID by budget",
        "VAR-d16 and VAR-d20",
        figure_budget.RECIPES,
        figure_budget.figure_5,
        _observed,
        compared=2,
        judged=True,
    ),
    "6": FigureKind(
        "frequencies of codebook entries before and after resampling",
        "a model that its caption does not name",
        (),
        figure_frequencies.figure_6,
        _sampled,
    ),
    "A": FigureKind("pictures at 6/6 bits", "VAR-d16", figure_pictures.METHODS, figure_pictures.figure_a, _shown),
    "B": FigureKind(
        "pictures at 6/6 bits, the first two stages full precision's",
        "VAR-d16",
        figure_pictures.METHODS,
        figure_pictures.figure_b,
        _shown,
    ),
    "D": FigureKind(
        "edited photographs at 6/6 bits",
        "VAR-d30",
        figure_editing.RECIPES,
        figure_editing.figure_d,
        lambda settings, rows: EDITING_IMAGES * figure_editing.PHOTOGRAPHS * (rows + 2),
        edits=True,
    ),
    "E": FigureKind("pictures of Ours by bits", "VAR-d30", figure_pictures.BITS, figure_pictures.figure_e, _shown),
    "F": FigureKind(
        "IS and FID by bit operations",
        "VAR-d30",
        figure_operations.RECIPES,
        figure_operations.figure_f,
        lambda settings, rows: 0.0,
        judged=True,
    ),
}


def recipes_of(names: Sequence[str]) -> list[str]:
    """Full precision, and each recipe that the figures of these names show."""
    return list(dict.fromkeys([FULL_PRECISION, *(recipe for name in names for recipe in FIGURES[name].recipes)]))


@dataclass(frozen=True)
class Plan:
    """What is to be done for figures.

    Attributes:
        unbuilt: recipes whose bundles have to be built.
        pictures: to be drawn for IS and FID.
        seconds: in all, roughly; as if no attention were observed yet.
    """

    unbuilt: tuple[str, ...]
    pictures: int
    seconds: float


def plan(workshop: Workshop, names: Sequence[str]) -> Plan:
    """What is left to do, by the speed of full precision's bundle, which is built for that where it is not there.

    Args:
        workshop: the model's.
        names: of figures.
    """
    settings, network = workshop.settings, workshop.judges.network
    names = [name for name in names if workshop.photographs is not None or not FIGURES[name].edits]
    there, unbuilt = dict[str, RecipeBundle](), dict[str, Recipe]()
    for name in recipes_of(names)[1:]:
        recipe = workshop.recipe(name)
        found = workshop.bundles.built(recipe)
        if found is not None:
            there[name] = found
        elif workshop.bundles.missing(recipe) is None:
            unbuilt[name] = recipe
    pictures, judged = 0, {recipe for figure in names if FIGURES[figure].judged for recipe in FIGURES[figure].recipes}
    if judged and network is not None:
        originals = {FULL_PRECISION: workshop.original, **there}
        begun = [item for name, item in originals.items() if name in judged or name == FULL_PRECISION]
        done = sum(
            finished_images(
                Generator(item.bundle, workshop.session), network, Sampling(settings.seed), workshop.statistics
            )
            for item in begun
        )
        pictures = settings.images * (len(begun) + len(judged & unbuilt.keys())) - done
    picture = picture_seconds(workshop.generator(workshop.original), network, batch_size=2)
    observing = settings.observed * observing_seconds(workshop.original.bundle.model)
    seconds = pictures * picture + sum(build_seconds(recipe, picture) for recipe in unbuilt.values())
    for figure in names:
        kind = FIGURES[figure]
        rows = sum(recipe in there or recipe in unbuilt for recipe in kind.recipes)
        seconds += kind.passes(settings, rows) * picture + min(kind.compared, rows) * observing
    return Plan(tuple(unbuilt), pictures, seconds)


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
