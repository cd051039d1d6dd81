"""A table of the paper on a terminal, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.paper._estimated_time import in_words
from nextscale.paper._quality import PlannedRow
from nextscale.paper.paper_table import PaperTable, headers, shown_rows
from nextscale.runtime._text import printable


def print_table(table: PaperTable, console: Console) -> None:
    """Notes, the table, and what is missing of it."""
    console.soft_wrap = True
    console.width = max(console.width, 160) if not console.is_terminal else console.width
    for note in table.notes:
        console.print(printable(note))
    shown = Table(*headers(table), box=SIMPLE)
    for cells in shown_rows(table):
        shown.add_row(*map(printable, cells))
    console.print(shown)
    for line in (*table.left_out, *table.warnings):
        console.print(printable(line))


def print_total(planned: Sequence[PlannedRow]) -> None:
    """How long drawing and comparing will take."""
    seconds = in_words(sum(row.seconds for row in planned))
    Console(stderr=True, highlight=False, markup=False).print(f"{len(planned)} rows: about {seconds}")
