"""Draw the error of attention's product with the values by stage (Fig. 1(a) and 5(a-b)). Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
WIDTH, HEIGHT = 3.4, 3.4  # of a panel, inches


@dataclass(frozen=True)
class Curve:
    """One bundle's relative error, float64 [S], and what it would be if V were a float."""

    error: NDArray[np.float64]
    without_values: NDArray[np.float64]


def plot_attention_error(file: BinaryIO, panels: Mapping[str, Mapping[str, Curve]], title: str) -> None:
    """Write a PNG: a panel for each quantizer, and in it a line for each bundle; dotted, the first one's with V exact.

    Args:
        file: where the PNG goes.
        panels: curves by panel and label.
        title: what the figure shows.
    """
    columns = math.ceil(math.sqrt(len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.4, HEIGHT * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle(title)
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        for colour, (label, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
            stages = np.arange(1, len(curve.error) + 1)
            axes.plot(stages, curve.error, marker="o", markersize=4, color=colour, label=label)
        first = next(iter(curves.values())).without_values
        # Of one token the weight is 1 and exact, and a logarithmic axis has no zero.
        axes.plot(np.arange(1, len(first) + 1), np.where(first > 0, first, np.nan), ":", color="black", label="V exact")
        axes.set(title=name, yscale="log")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    figure.supxlabel("stage")
    figure.supylabel("relative error of A V")
    figure.savefig(file, format="png", dpi=120)
