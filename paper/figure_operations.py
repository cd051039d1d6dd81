"""Fig. F: IS and FID by bit operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from nextscale.models.var.layers import facts_of_bundle
from nextscale.paper._figure import DPI, STYLES, Figure, FigureLeftOut, Workshop
from nextscale.paper._figure_quality import qualities_of
from nextscale.paper._recipe_operations import recipe_operations
from nextscale.paper._rows import METHODS
from nextscale.paper.recipe_bundles import FULL_PRECISION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BITS = ("w8a8", "w6a6", "w4a8", "w4a6", "w4a4")
# The paper's at its bits, and what this project recommends.
RECIPES = (
    *(f"{method}-{bits}" for method in ("brecq", "litevar", "ours") for bits in BITS[1:]),
    "default",
    *(f"default-{bits}" for bits in BITS[1:]),
)
GIGA = 1e9
# Where a point's bits are written, points to the right and up; to its left if the next one is nearer than this factor.
RIGHT, LEFT, NEAR = (7, 2), (-23, -3), 1.12


def figure_f(workshop: Workshop) -> Figure:
    """A line for each method over its bits.

    Raises:
        FigureLeftOut: none of the recipes has a bundle.
    """
    quality = qualities_of(workshop, RECIPES)
    model, facts = workshop.original.bundle.model, facts_of_bundle(workshop.original.bundle)
    operations = dict[str, float]()
    for name, item in quality.bundles.items():
        told = item.bundle.manifest.recipe.get("shift_and_sum", {})
        operations[name] = recipe_operations(model, facts, workshop.recipe(name), told.get("extra_share"))
    shown = [name for name in RECIPES if name in quality.metrics]
    if not shown:
        raise FigureLeftOut("no bundle of a recipe but full precision's")

    def write(file: BinaryIO) -> None:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(12, 4.8), layout="constrained")
        panels = canvas.subplots(1, 2)
        for axes, name, figure in zip(panels, quality.names, (quality.score, quality.distance), strict=True):
            _draw(axes, {recipe: (operations[recipe] / GIGA, figure(recipe)) for recipe in shown})
            axes.set_ylabel(name)
            axes.axhline(figure(FULL_PRECISION), color="black", linestyle=":", label="Full precision")
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside right center", fontsize="small")
        canvas.suptitle(
            f"{workshop.model_name}, {workshop.settings.images} pictures a point; 4/6: bits of weights/activations; "
            "products in floats count 16 x 16"
        )
        canvas.savefig(file, format="png", dpi=DPI)

    figures = quality.numbers()
    for name, values in figures.items():
        values["bit operations of an image's row"] = operations[name]
    return Figure(
        write,
        {
            "by_recipe": figures,
            "distance_is_to": "real pictures" if quality.to_real else "full precision's pictures",
        },
    )


def method_and_bits(name: str) -> tuple[str, str]:
    """Of a recipe's name: "brecq" and "4/6"; default's are 8/8."""
    method, _, bits = name.rpartition("-")
    return (method, f"{bits[1]}/{bits[3]}") if method else (name, "8/8")


def _draw(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    for method in STYLES:
        own = sorted((*point, name) for name, point in points.items() if method_and_bits(name)[0] == method)
        if not own:
            continue
        axes.plot(
            [x for x, _, _ in own],
            [y for _, y, _ in own],
            markersize=6,
            label=METHODS[method],
            **STYLES[method],  # type: ignore[arg-type]
        )
        for place, (x, y, name) in enumerate(own):
            bits = method_and_bits(name)[1]
            near = place + 1 < len(own) and own[place + 1][0] < NEAR * x
            # Ours lies beside BRECQ, and says for both.
            if method != "brecq" or name.replace(method, "ours") not in points:
                shift = LEFT if near else RIGHT
                axes.annotate(bits, (x, y), shift, textcoords="offset points", fontsize="x-small")
    axes.margins(x=0.12)
    axes.set(xscale="log", xlabel="bit operations of an image's row, G")
    axes.set_xticks(_ticks([x for x, _ in points.values()]), minor=False)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers between the smallest and the largest value, and one on each side."""
    steps = [digit * 10.0**power for power in range(-6, 12) for digit in (1, 2, 3, 5)]
    low = max((step for step in steps if step <= min(values)), default=steps[0])
    high = min((step for step in steps if step >= max(values)), default=steps[-1])
    return [step for step in steps if low <= step <= high]
