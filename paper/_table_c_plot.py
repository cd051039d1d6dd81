"""Table C as a bar chart. Needs matplotlib."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from nextscale.paper._table_c_page import batches
from nextscale.paper.table_c import Row, TableC


def plot_table_c(file: BinaryIO, table: TableC) -> None:
    """Write a PNG: images/s with 95% intervals by row and batch size, each row labelled with its KL."""
    sizes = batches(table)
    figure = Figure(figsize=(7.5, 1.4 + 0.34 * len(table.rows) * (0.6 + 0.4 * len(sizes))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(sizes)
    largest = max(speed.images_per_second.mean for row in table.rows for speed in row.speeds)
    for i, batch in enumerate(sizes):
        color = colormaps["viridis"](0.25 + 0.5 * i / max(1, len(sizes) - 1))
        for y, row in enumerate(table.rows):
            for speed in row.speeds:
                if speed.batch != batch:
                    continue
                rate, place = speed.images_per_second, y + (i - (len(sizes) - 1) / 2) * height
                errors = np.array([[rate.mean - rate.low], [rate.high - rate.mean]])
                known = bool(np.isfinite(errors).all())
                axes.barh(
                    place, rate.mean, 0.92 * height, color=color, xerr=errors if known else None,
                    error_kw={"elinewidth": 1, "capsize": 2}, label=f"batch {batch}" if y == 0 else None,
                )  # fmt: skip
                text = f"  {rate.mean:.3g}" + (f"   {_quality(row)}" if i == 0 else "")
                end = min(rate.high, 1.2 * largest) if math.isfinite(rate.high) else rate.mean
                # A few rounds on a busy machine have intervals far wider than the bars: the layout must not follow.
                axes.text(end, place, text, va="center", fontsize=8).set_in_layout(False)
    axes.set_yticks(range(len(table.rows)), [row.method for row in table.rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.55 * largest)
    axes.set(xlabel="images/s", title=f"{table.model.get('name', '')} on {table.machine.cpu}")
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(sizes) > 1:
        figure.legend(frameon=False, loc="outside lower center", ncols=len(sizes))
    figure.savefig(file, format="png", dpi=120)


def _quality(row: Row) -> str:
    return "" if row.agreement is None or row.agreement.kl == 0 else f"KL {row.agreement.kl:.3g}"
