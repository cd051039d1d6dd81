"""A picture of what probability matching did (Fig. 1(b) and 6 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.match_probabilities import MatchingReport, total_variation
from nextscale.runtime.image_io import Writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 100
TARGET_COLOR, ACTUAL_COLOR = "#222222", "#e07b39"


def matching_plot(report: MatchingReport, matched: bool = True) -> Writer:
    """Target and actual frequency of the entries, all stages together; needs matplotlib.

    Above, the most probable entries in order; below, every entry of the codebook, on logarithmic axes from 0 on.

    Args:
        report: of all stages.
        matched: also after matching, beside before.
    Returns:
        writes a PNG.
    """
    target = report.target.sum(0)
    columns = {"before matching" if matched else "as sampled": report.before.sum(0)}
    if matched:
        columns["after matching"] = report.after.sum(0)

    def write(file: BinaryIO) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.5 * len(columns), 7), layout="constrained")
        rows = figure.subplots(2, len(columns), sharex="row", sharey="row", squeeze=False)
        for column, (title, counts) in enumerate(columns.items()):
            _bars(rows[0, column], target, counts)
            _scatter(rows[1, column], target, counts)
            rows[0, column].set_title(f"{title}: total variation {total_variation(target, counts):.3f}")
        rows[0, 0].set_ylabel("frequency $s_k$, tokens")
        rows[1, 0].set_ylabel("frequency $s_k$, tokens")
        rows[0, 0].legend(frameon=False)
        rows[1, 0].legend(frameon=False, loc="upper left")
        figure.savefig(file, format="png", dpi=130)

    return write


def _bars(axes: Axes, target: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    order = np.argsort(-target, kind="stable")[:SHOWN]
    places = np.arange(len(order))
    axes.bar(places, counts[order], width=1.0, color=ACTUAL_COLOR, label="frequency $s_k$")
    axes.step(places, target[order], where="mid", color=TARGET_COLOR, linewidth=1.3, label="target $t_k$")
    axes.set_xlabel(f"the {len(order)} most probable entries")
    axes.margins(x=0)
    axes.spines[["top", "right"]].set_visible(False)


def _scatter(axes: Axes, target: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    end = float(max(target.max(), counts.max())) * 1.2
    line = np.concatenate([np.linspace(0, 1, 20), np.geomspace(1, max(end, 2), 80)])
    axes.fill_between(line, np.maximum(line - 1, 0), line + 1, color="#cccccc", linewidth=0, label="within one token")
    axes.scatter(target, counts, s=5, color=ACTUAL_COLOR, alpha=0.5, linewidths=0, label="an entry")
    axes.plot(line, line, color=TARGET_COLOR, linewidth=1, label="$s_k = t_k$")
    axes.set_xlabel("target $t_k$, tokens")
    axes.set_xlim(0, end)
    axes.set_ylim(-0.2, end)
    axes.spines[["top", "right"]].set_visible(False)
