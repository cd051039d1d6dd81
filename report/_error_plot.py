"""An error of each operator in the graph's order, as SVG that is part of the page: resting on a mark tells its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nextscale.report._page import Html, element, text

STYLE = """
svg.errors { display: block; width: 100%; min-width: 44rem; height: auto; font-size: 13px; }
svg.errors text { fill: var(--soft); }
svg.errors line { stroke: var(--line); }
svg.errors circle { fill-opacity: .8; stroke: none; }
svg.errors .hollow { fill: #fff; fill-opacity: 1; stroke: inherit; stroke-width: 1.6; }
svg.errors path { fill: none; stroke-width: 1.6; }
"""

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa3", "#8c6d31")
# In units of the drawing: its frame, and below it the line of what stays in float.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM, _LANE = 960.0, 336.0, 76.0, 952.0, 12.0, 262.0, 290.0
_MOST_TICKS = 8
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Mark:
    """An operator.

    Attributes:
        label: told where the pointer rests on it.
        kind: an index, which decides the colour.
        error: relative, from 0 to infinity; None where there is none.
        stays: a cross on the line below; else a disc.
        filled: that the disc is.
    """

    label: str
    kind: int
    error: float | None
    stays: bool
    filled: bool


def kind_color(kind: int) -> str:
    """Of the marks of a kind."""
    return _COLORS[kind % len(_COLORS)]


def error_plot(marks: Sequence[Mark], meaning: str) -> Html:
    """The errors on a logarithmic scale, on whose ends those of 0 and of infinity lie.

    Args:
        marks: at least one, in the graph's order.
        meaning: of the errors, for those who do not see them.
    """
    ticks = _ticks([mark.error for mark in marks if mark.error is not None])
    size = 4.2 if len(marks) <= 150 else 3.0 if len(marks) <= 600 else 2.0
    by_kind: dict[int, list[Html]] = {}
    for place, mark in enumerate(marks):
        x = _LEFT + (place + 0.5) / len(marks) * (_RIGHT - _LEFT)
        y = _LANE if mark.error is None else _height(mark.error, ticks)
        by_kind.setdefault(mark.kind, []).append(_drawn(mark, x, y, size))
    groups = [
        element("g", *drawn, fill=kind_color(kind), stroke=kind_color(kind)) for kind, drawn in sorted(by_kind.items())
    ]
    described = {"viewBox": f"0 0 {_WIDTH:g} {_HEIGHT:g}", "aria-label": meaning}
    return element("svg", *_axes(ticks, len(marks)), *groups, class_="errors", role="img", **described)


def _ticks(errors: Sequence[float]) -> list[float]:
    """Round numbers from below the least error to above the largest: with 2 and 5, or only powers of ten."""
    known = [error for error in errors if 0 < error < math.inf]
    least, largest = min(known, default=1e-3), max(known, default=1.0)
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(largest)) + 1
    fine = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    below, above = (sum(tick <= least for tick in fine) - 1, sum(tick <= largest for tick in fine) + 1)
    if above - below <= _MOST_TICKS:
        return fine[below:above]
    spread = -(-(last - first) // _MOST_TICKS)
    return [10.0**power for power in range(first, last + spread - 1, spread)]


def _height(error: float, ticks: Sequence[float]) -> float:
    """Of an error within the ticks, or at the nearer end."""
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    power = math.log10(min(max(error, ticks[0]), ticks[-1]))
    return _BOTTOM - (power - low) / (high - low) * (_BOTTOM - _TOP)


def _drawn(mark: Mark, x: float, y: float, size: float) -> Html:
    label = mark.label if len(mark.label) <= _LONGEST_LABEL else f"…{mark.label[1 - _LONGEST_LABEL :]}"
    title = element("title", text(label))
    if mark.stays:
        side = f"{2 * size:g}"
        return element("path", title, d=f"M{x - size:.1f} {y - size:.1f}l{side} {side}m0 -{side}l-{side} {side}")
    hollow = {} if mark.filled else {"class_": "hollow"}
    return element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{size:g}", **hollow)


def _axes(ticks: Sequence[float], count: int) -> Iterator[Html]:
    """A line for each tick, and what the axes are."""
    for tick in ticks:
        y = _height(tick, ticks)
        yield _rule(y)
        yield _label(_LEFT - 8, y + 4.5, f"{100 * tick:g}%", "end")
    yield _rule(_LANE)
    yield _label(_LEFT - 8, _LANE + 4.5, "in float", "end")
    yield _label(_LEFT, _HEIGHT - 8, "1", "start")
    yield _label((_LEFT + _RIGHT) / 2, _HEIGHT - 8, "operators in the graph's order", "middle")
    yield _label(_RIGHT, _HEIGHT - 8, f"{count}", "end")


def _rule(y: float) -> Html:
    return element("line", x1=f"{_LEFT:g}", x2=f"{_RIGHT:g}", y1=f"{y:.1f}", y2=f"{y:.1f}")


def _label(x: float, y: float, label: str, anchor: str) -> Html:
    return element("text", text(label), x=f"{x:g}", y=f"{y:.1f}", **{"text-anchor": anchor})
