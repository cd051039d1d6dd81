"""Fig. 1(a) and 5(a-b): the error of attention's product with the values, by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.attention_error import (
    MOST_OBSERVED,
    AttentionError,
    as_json,
    by_stage,
    observed_bytes,
)
from nextscale.paper._figure import DPI, STYLES, Figure, FigureLeftOut, Settings, Workshop, rounded
from nextscale.paper._observed_attention import ObservedAttention, Observing
from nextscale.paper._rows import method_of
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._request import DEFAULT_CFG_SCALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE, OURS = "brecq-w4a6", "ours-w4a6"
RECIPES = (BASELINE, OURS)
RELATIVE, SQUARED = "relative", "mean_squared"
LABELS = {RELATIVE: "relative error of A V, %", SQUARED: "squared error of A V, mean"}


def figure_1a(workshop: Workshop) -> Figure:
    """The baseline's error, of one block or of their mean, and of each block thinly.

    Raises:
        FigureLeftOut: there is no bundle of the baseline, or it takes too much memory.
    """
    found = errors_of(workshop, [BASELINE])
    if not found:
        raise FigureLeftOut(f"no bundle of {BASELINE}")
    block, error = workshop.settings.block, found[BASELINE]

    def write(file: BinaryIO) -> None:
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(9, 3.8), layout="constrained")
        for axes, measure in zip(canvas.subplots(1, 2), LABELS, strict=True):
            draw_errors(axes, found, measure, block, blocks=True)
        canvas.suptitle(f"Error of attention times values at 4/6 bits: {workshop.model_name}, {error.images} images")
        canvas.savefig(file, format="png", dpi=DPI)

    return Figure(write, numbers(found, block))


def errors_of(workshop: Workshop, names: Iterable[str]) -> dict[str, AttentionError]:
    """The errors of the recipes' bundles that are there: what an earlier call left in the folder, or measured.

    Raises:
        FigureLeftOut: A, V and their products take too much memory.
        NextscaleError: the model has no such block.
    """
    settings, original = workshop.settings, workshop.original.bundle
    if settings.block is not None and not 0 <= settings.block < original.model.depth:
        raise NextscaleError(f"block {settings.block + 1}: the model has {original.model.depth}; count from 1")
    needed = observed_bytes(original.model)
    if needed > MOST_OBSERVED:
        raise FigureLeftOut(f"observing A V takes {needed / 1e9:.0f} GB")
    attention = ObservedAttention(original, observing_of(settings), workshop.work, workshop.session, workshop.tell)
    return {name: attention.error(name, item.bundle) for name, item in workshop.found(names).items()}


def observing_of(settings: Settings) -> Observing:
    """What attention is observed on; calibration has the seed itself."""
    return Observing(settings.observed, settings.seed + 1, DEFAULT_CFG_SCALE)


def numbers(found: Mapping[str, AttentionError], block: int | None) -> dict[str, Any]:
    """What the panels show, and the errors of all stages and blocks."""
    return {
        "block": None if block is None else block + 1,
        "shown": {
            measure: {name: rounded(shown(getattr(error, measure), block)) for name, error in found.items()}
            for measure in LABELS
        },
        "by_stage_and_block": {name: as_json(error) for name, error in found.items()},
    }


def shown(values: NDArray[np.float64], block: int | None) -> NDArray[np.float64]:
    """[S] of [S, D]: one block's, or the mean over blocks."""
    return by_stage(values) if block is None else values[:, block]


def draw_errors(
    axes: Axes, found: Mapping[str, AttentionError], measure: str, block: int | None, *, blocks: bool = False
) -> None:
    """A line for each recipe.

    Args:
        axes: to draw on.
        found: errors by recipe.
        measure: RELATIVE or SQUARED.
        block: which is shown; None: the mean over blocks.
        blocks: also a thin line for each block of each.
    """
    from matplotlib.ticker import MaxNLocator

    scale = 100 if measure == RELATIVE else 1
    for name, error in found.items():
        values = scale * getattr(error, measure)
        stages = np.arange(1, len(values) + 1)
        if blocks:
            thin = axes.plot(stages, values, color="#bbbbbb", linewidth=0.8)
            thin[0].set_label("each block")
        which = "mean over blocks" if block is None else f"block {block + 1}"
        style = STYLES[name.rpartition("-")[0]]
        axes.plot(stages, shown(values, block), markersize=5, label=f"{method_of(name)}, {which}", **style)  # type: ignore[arg-type]
    axes.set(xlabel="stage", ylabel=LABELS[measure])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
