"""Draw how many tokens are attentive (the paper's Fig. 2, left). Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray


def plot_attentive_share(file: BinaryIO, shares: NDArray[np.float64], thetas: Sequence[float], title: str) -> None:
    """Write a PNG: a line for each theta of the percentage of tokens whose score is above it, by stage.

    Args:
        file: where the PNG goes.
        shares: float64 [len(thetas), S], in [0, 1].
        thetas: thresholds.
        title: what the figure shows.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    draw_attentive_share(axes, shares, thetas)
    axes.set_title(title)
    figure.savefig(file, format="png", dpi=120)


def draw_attentive_share(axes: Axes, shares: NDArray[np.float64], thetas: Sequence[float]) -> None:
    """The same lines on axes of the caller's."""
    stages = np.arange(1, shares.shape[1] + 1)
    shades = np.linspace(0.85, 0.2, len(thetas))
    for theta, share, shade in zip(thetas, shares, shades, strict=True):
        axes.plot(stages, 100 * share, marker="o", markersize=4, color=colormaps["viridis"](shade), label=f"{theta:g}")
    axes.set(xlabel="stage", ylabel="tokens above θ, %", ylim=(-2, 102))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="θ")
