"""Fig. 5: what shift-and-sum does to the error of A V by stage, and its budget to the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from nextscale.evaluate.attention_error import AttentionError
from nextscale.paper import figure_attention_error as attention
from nextscale.paper._figure import DPI, STYLES, Figure, FigureLeftOut, Workshop
from nextscale.paper._figure_quality import Qualities, qualities_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The budget of extra operations, %; 0 is BRECQ.
BUDGETS = {
    "brecq-w4a6": 0.0,
    "budget-0.25-w4a6": 0.25,
    "budget-0.5-w4a6": 0.5,
    "ours-w4a6": 1.0,
    "budget-2-w4a6": 2.0,
    "budget-5-w4a6": 5.0,
}
# Matched token maps alone, which all above 0% have, too.
RESAMPLED = "resample-w4a6"
RECIPES = (*BUDGETS, RESAMPLED)


def figure_5(workshop: Workshop) -> Figure:
    """(a, b) errors of the baseline and of ours by stage, relative and squared; (c, d) IS and FID by budget.

    Raises:
        FigureLeftOut: none of the recipes has a bundle.
    """
    errors = _errors(workshop)
    quality = qualities_of(workshop, RECIPES)
    shown = [name for name in RECIPES if name in quality.metrics]
    if not shown:
        raise FigureLeftOut("no bundle of a recipe at 4/6 bits")

    def write(file: BinaryIO) -> None:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(10, 7.4 if errors else 3.9), layout="constrained")
        panels = canvas.subplots(2 if errors else 1, 2, squeeze=False)
        if errors:
            for axes, measure in zip(panels[0], attention.LABELS, strict=True):
                attention.draw_errors(axes, errors, measure, workshop.settings.block)
            panels[0, 0].set_title("(a) error of A V, relative")
            panels[0, 1].set_title("(b) error of A V, squared")
        score, distance = quality.names
        spread = {recipe: quality.score_error(recipe) for recipe in shown}
        _draw_budgets(panels[-1, 0], {recipe: quality.score(recipe) for recipe in shown}, spread)
        panels[-1, 0].set(title=f"(c) {score} by budget, ± standard error", ylabel=score)
        _draw_budgets(panels[-1, 1], {recipe: quality.distance(recipe) for recipe in shown})
        panels[-1, 1].set(title=f"(d) {distance} by budget", ylabel=distance)
        canvas.suptitle(
            f"Shift-and-sum at 4/6 bits: {workshop.model_name}, {workshop.settings.images} pictures a budget"
        )
        canvas.savefig(file, format="png", dpi=DPI)

    return Figure(write, _numbers(errors, quality, workshop.settings.block))


def _errors(workshop: Workshop) -> dict[str, AttentionError]:
    """None where observing them takes too much memory."""
    try:
        return attention.errors_of(workshop, attention.RECIPES)
    except FigureLeftOut as reason:
        workshop.left_out.append(f"(a) and (b): {reason}")
        return {}


def _draw_budgets(axes: Axes, values: Mapping[str, float], spread: Mapping[str, float] | None = None) -> None:
    """The budgets at equal distances; what resampling alone does stands beside 0%.

    Args:
        axes: to draw on.
        values: by recipe.
        spread: of the values, to both sides.
    """
    places = {name: float(place) for place, name in enumerate(BUDGETS)} | {RESAMPLED: 0.15}
    budgets, resampled = [name for name in BUDGETS if name in values], [RESAMPLED] if RESAMPLED in values else []
    for names, label, style in (
        (budgets, "Ours; 0%: BRECQ", STYLES["ours"]),
        (resampled, "0%, resampled calibration", {"color": "black", "marker": "D", "linestyle": "none"}),
    ):
        if names:
            errors = None if spread is None else [spread[name] for name in names]
            x, y = [places[name] for name in names], [values[name] for name in names]
            axes.errorbar(x, y, errors, markersize=6, capsize=4, label=label, **style)  # type: ignore[arg-type]
    axes.set_xticks(range(len(BUDGETS)), [f"{budget:g}%" for budget in BUDGETS.values()])
    axes.set(xlabel="extra bit operations allowed", xlim=(-0.3, len(BUDGETS) - 0.7))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _numbers(errors: Mapping[str, AttentionError], quality: Qualities, block: int | None) -> dict[str, Any]:
    figures = quality.numbers()
    for name, values in figures.items():
        theta = quality.bundles[name].bundle.manifest.recipe.get("shift_and_sum", {})
        values["budget, %"] = BUDGETS.get(name)
        values |= {key: theta[key] for key in ("theta", "extra_share") if key in theta}
    return {
        "error": attention.numbers(errors, block) if errors else None,
        "by_budget": figures,
        "distance_is_to": "real pictures" if quality.to_real else "full precision's pictures",
    }
