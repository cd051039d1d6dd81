"""What the pages of the tables have in common: their heading, and tables with intervals in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nextscale.measure.statistics import Interval

if TYPE_CHECKING:
    from nextscale.paper.paper_table import PaperTable
    from nextscale.paper.table_2 import Table2
    from nextscale.paper.table_3 import Table3
    from nextscale.paper.table_d import TableD


def heading(
    title: str, table: PaperTable | Table2 | Table3 | TableD, notes: Sequence[str], intervals: str = ""
) -> list[str]:
    """The title, and all that a reader must know, as a list; `intervals` says what follows ±, where no note does."""
    numbers = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    return [
        f"# {title}",
        "",
        *[f"- {note}" for note in notes],
        f"- {'; '.join(filter(None, (table.machine.cpu, numbers, intervals)))}",
        *[f"- left out: {line}" for line in table.left_out],
        *[f"- **{line}**" for line in table.warnings],
    ]


def calibration_notes(table: Table2 | Table3) -> list[str]:
    """A line on how many images a table's integer rows are calibrated with, if there are any."""
    images = sorted({row.calibration_images for row in table.rows if row.calibration_images is not None})
    return [f"integer bundles are calibrated on {' or '.join(map(str, images))} images"] if images else []


def with_interval(interval: Interval | None, difference: bool = False, digits: int = 4) -> str:
    """0.1234 ± 0.0021: half the width of the 95% interval; with a sign, and a mark if it excludes 0."""
    if interval is None:
        return ""
    text = f"{interval.mean:+.{digits}f}" if difference else f"{interval.mean:.{digits}f}"
    if not math.isfinite(interval.low):
        return text
    mark = " *" if difference and (interval.low > 0 or interval.high < 0) else ""
    return f"{text} ± {(interval.high - interval.low) / 2:.{digits}f}{mark}"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [
        f"| {' | '.join(headers)} |",
        f"|{'---|' * len(headers)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]
