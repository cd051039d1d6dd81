"""A table of the paper on a terminal, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.paper._estimated_time import in_words
from nextscale.paper._plan import PlannedStep
from nextscale.paper.paper_table import PaperTable, headers, shown_rows
from nextscale.paper.store import in_gigabytes
from nextscale.runtime._text import printable
from nextscale.runtime._wording import counted


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


def print_total(planned: Sequence[PlannedStep]) -> None:
    """How long drawing and comparing will take."""
    seconds = in_words(sum(step.seconds for step in planned))
    Console(stderr=True, highlight=False, markup=False).print(f"{len(planned)} rows: about {seconds}")


def print_plan(planned: Sequence[PlannedStep], left_out: Sequence[str] = ()) -> None:
    """What `--plan` tells: each step with what is left of it, then all of them together, and what cannot be made."""
    shown = Table("", "left", "time, about", "by", "MB", box=SIMPLE)
    for step in planned:
        left = [*["build"] * step.builds, *(f"{count} {what}" for what, count in step.left.items())]
        size = f"{step.bytes / 1e6:.1f}" if step.builds else ""
        cells = ", ".join(left), in_words(step.seconds), step.basis, size
        shown.add_row(printable(step.name), *(("in the store", "0 s") if step.is_finished else cells))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.width = max(console.width, 120) if not console.is_terminal else console.width
    console.print(shown)
    seconds, gained = sum(step.seconds for step in planned), sum(step.bytes for step in planned)
    console.print(f"in all: about {in_words(seconds)}, and {in_gigabytes(gained)} more in the store; estimated")
    learned = [step.name for step in planned if step.learns]
    if learned:
        told = f"and the time to learn the rounding of {counted(len(learned), 'row')}"
        console.print(printable(f"{told}, which is not estimated: {', '.join(learned)}"))
    for line in left_out:
        console.print(printable(f"left out: {line}"))
