"""The report's plots, as SVG. Needs matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nextscale.measure.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_LOG_FROM = 20.0  # ratio of the largest to the smallest value
_INK, _SOFT, _LINE = "#1d2430", "#5c6675", "#dfe3e8"
_MARKERS = "osD^vP"
# Where a label may stand around its point, in points, the best first.
_OFFSETS = [
    (7, 5), (7, -5), (-7, 5), (-7, -5), (0, 9), (0, -9), (7, 17), (7, -17), (-7, 17), (-7, -17), (7, 29), (7, -29),
]  # fmt: skip
_LEGEND_CHARACTERS = 72  # of one line


@dataclass(frozen=True)
class Line:
    """A figure at each stage."""

    label: str
    color: str
    values: Sequence[float]


@dataclass(frozen=True)
class Point:
    """A bundle between speed and agreement.

    Attributes:
        speed: images/s.
        kl, kl_stderr: nats per token, above 0, and the standard error, which may be NaN.
        firm: measured by `nextscale evaluate`; else on the few images of its build.
    """

    label: str
    color: str
    speed: Interval
    kl: float
    kl_stderr: float
    firm: bool


def stages_plot(lines: Sequence[Line], label: str, *, percent: bool = False, legend_title: str = "") -> bytes:
    """A line for each bundle (or theta) over the stages.

    Args:
        lines: values finite; those of shares in [0, 1] if percent.
        label: of the vertical axis.
        percent: show 100 times the values.
        legend_title: what the lines are of.
    """
    columns = max(1, min(len(lines), _LEGEND_CHARACTERS // (6 + max(len(line.label) for line in lines))))
    with _figure(5.4, 3.3 + 0.18 * len(lines) / columns) as (figure, axes, finished):
        largest = max(max(line.values) for line in lines)
        smallest = min(min(line.values) for line in lines)
        for i, line in enumerate(lines):
            values = np.asarray(line.values) * (100 if percent else 1)
            stages = np.arange(1, len(values) + 1)
            marker = _MARKERS[[other.color for other in lines[:i]].count(line.color) % len(_MARKERS)]
            axes.plot(stages, values, marker=marker, markersize=4.5, color=line.color, label=_shown(line.label))
        axes.set(xlabel="stage", ylabel=label)
        axes.set_xticks(range(1, 1 + max(len(line.values) for line in lines)))
        if percent:
            axes.set_ylim(-3, 103)
        elif smallest > 0 and largest > _LOG_FROM * smallest:
            _logarithmic(axes, smallest, largest)
        elif smallest >= 0:
            axes.set_ylim(bottom=0)
        figure.legend(
            loc="outside lower center",
            ncols=columns,
            title=legend_title or None,
            frameon=False,
            fontsize=8.5,
        )
    return finished.getvalue()


def speed_plot(points: Sequence[Point], reference_speed: float | None, label: str) -> bytes:
    """KL against images/s, better to the lower right, with the line of bundles that none beats in both.

    Args:
        points: at least one.
        reference_speed: images/s of full precision, whose KL is 0.
        label: of the horizontal axis.
    """
    with _figure(5.4, 3.9) as (figure, axes, finished):
        front = pareto_front(points)
        axes.plot(
            [p.speed.mean for p in front], [p.kl for p in front], color=_SOFT, linewidth=1, linestyle=":", zorder=1
        )
        for point in points:
            axes.errorbar(
                point.speed.mean,
                point.kl,
                xerr=_error(point.speed.mean - point.speed.low, point.speed.high - point.speed.mean),
                yerr=_error(point.kl_stderr, point.kl_stderr),
                fmt="o",
                markersize=7,
                color=point.color,
                markerfacecolor=point.color if point.firm else "white",
                elinewidth=1,
            )
        smallest, largest = min(p.kl for p in points), max(p.kl for p in points)
        if largest > _LOG_FROM * smallest:
            _logarithmic(axes, smallest, largest)
        else:
            axes.set_ylim(0, 1.12 * largest)
        axes.margins(x=0.12)
        if reference_speed is not None:
            axes.axvline(reference_speed, color=_INK, linewidth=1, linestyle="--")
            axes.annotate(
                "full precision", (reference_speed, 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
                textcoords="offset points", rotation=90, va="top", ha="left", fontsize=8.5, color=_SOFT,
            )  # fmt: skip
        axes.set(xlabel=label, ylabel="KL, nats per token")
        _place_labels(figure, axes, points)
    return finished.getvalue()


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both speed and KL, from the slowest to the fastest."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed.mean, p.kl)):
        if not front or point.kl < front[-1].kl:
            front.append(point)
    return front[::-1]


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Each label beside its point, where it covers least of the points and of the labels before it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # fixes the layout
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    centres = axes.transData.transform([(p.speed.mean, p.kl) for p in points])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    for point in points:
        choices = []
        for rank, (dx, dy) in enumerate(_OFFSETS):
            label = _label(axes, point, dx, dy)
            box = label.get_window_extent(renderer)
            choices.append((_covered(box, taken, frame) + 0.01 * rank, rank, box))
            label.remove()
        _, rank, box = min(choices, key=lambda choice: choice[:2])
        _label(axes, point, *_OFFSETS[rank])
        taken.append(box)


def _label(axes: Axes, point: Point, dx: float, dy: float) -> Annotation:
    return axes.annotate(
        point.label, (point.speed.mean, point.kl), xytext=(dx, dy), textcoords="offset points", fontsize=8.5,
        ha=("center", "left", "right")[int(np.sign(dx))], va=("center", "bottom", "top")[int(np.sign(dy))],
        color=_INK,
    )  # fmt: skip


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Square pixels of the box over others, and many more for what lies outside the frame."""
    from matplotlib.transforms import Bbox

    def area(one: Bbox, other: Bbox) -> float:
        common = Bbox.intersection(one, other)
        return float(common.width * common.height) if common is not None else 0.0

    outside = float(box.width * box.height) - area(box, frame)
    return sum(area(box, other) for other in taken) + 10 * max(outside, 0.0)


def _error(below: float, above: float) -> list[list[float]] | None:
    return [[max(below, 0.0)], [max(above, 0.0)]] if np.isfinite([below, above]).all() else None


def _logarithmic(axes: Axes, smallest: float, largest: float) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(smallest / 1.5, largest * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes, io.BytesIO]]:
    """A figure with one plot in the report's style; at the end it is in the buffer, the same for the same input."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "nextscale",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": _INK,
        "axes.edgecolor": _SOFT,
        "axes.labelcolor": _INK,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": _LINE,
        "lines.linewidth": 1.7,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in letters that the font lacks
        figure, finished = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
        yield figure, figure.subplots(), finished
        figure.savefig(finished, format="svg", metadata={"Date": None, "Creator": None})


def _shown(label: str) -> str:
    """A label as matplotlib's legend shows it: those that begin with _ it would hide."""
    return f" {label}" if label.startswith("_") else label
