"""Fig. 1(b) and 6: how often calibration samples take each entry of the codebook, and how often they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nextscale.calib_data.match_probabilities import FREQUENCIES, MatchingReport, total_variation
from nextscale.calib_data.plot_matching import matching_plot
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper._figure import Figure, Settings, Workshop, rounded
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.store import reading_entry
from nextscale.runtime._npz import checked, read_npz

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

    folder, model = workshop.bundles.maps(recipe, told), workshop.original.bundle.model
    with reading_entry(folder):
        arrays, shape = read_npz(folder / FREQUENCIES), (model.num_stages, model.vocab_size)
        target = checked(arrays, "target", "f", shape)
        before, after = (checked(arrays, name, "iu", shape) for name in ("before", "after"))
        if min(found.min() for found in (target, before, after)) < 0 or not before.any():
            raise ValueError("of fewer than no tokens, or of none")
    return MatchingReport(target, before, after)


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
