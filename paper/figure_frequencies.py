"""Fig. 1(b) and 6: how often calibration samples take each entry of the codebook, and how often they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nextscale.calib_data.match_probabilities import FREQUENCIES, MatchingReport, total_variation
from nextscale.calib_data.plot_matching import matching_plot
from nextscale.calib_data.token_maps import read_npz
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper._figure import Figure, Settings, Workshop, rounded
from nextscale.paper.paper_recipes import paper_recipe

RECIPE = "ours-w4a6"  # as which calibration samples are matched


def figure_1b(workshop: Workshop) -> Figure:
    """Frequencies as they are sampled."""
    report = matching_report(workshop)
    return Figure(matching_plot(report, matched=False), numbers(report, matched=False))


def figure_6(workshop: Workshop) -> Figure:
    """Frequencies before and after matching (Eq. 17 to 20)."""
    report = matching_report(workshop)
    return Figure(matching_plot(report), numbers(report, matched=True))


def matching_report(workshop: Workshop) -> MatchingReport:
    """Of the calibration samples that bundles of resampled calibration are built with; kept, and gone on with."""
    recipe = sampling_recipe(workshop.settings)

    def told(step: str, done: int = 0, total: int = 0) -> None:
        workshop.tell(f"calibration samples: {step}", done, total)

    arrays = read_npz(workshop.bundles.maps(recipe, told) / FREQUENCIES, ("target", "before", "after"))
    return MatchingReport(arrays["target"], arrays["before"], arrays["after"])


def sampling_recipe(settings: Settings) -> Recipe:
    """As of which the samples are drawn and matched."""
    recipe = paper_recipe(RECIPE)
    return replace(recipe, calibration=replace(recipe.calibration, images=settings.samples))


def numbers(report: MatchingReport, *, matched: bool) -> dict[str, Any]:
    """Of all stages together, by the entry's number: what is expected of all tokens by the probabilities, and taken."""
    counts = {"target": report.target.sum(0), "before": report.before.sum(0)}
    if matched:
        counts["after"] = report.after.sum(0)
    taken = {name: found for name, found in counts.items() if name != "target"}
    return {
        "tokens": int(counts["before"].sum()),
        "entries": len(counts["target"]),
        "total_variation": {name: rounded(total_variation(counts["target"], found)) for name, found in taken.items()},
        "entries_never_taken": {name: int((found == 0).sum()) for name, found in taken.items()},
        **{name: rounded(found) for name, found in counts.items()},
    }
