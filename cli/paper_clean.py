"""`nextscale paper clean`: what the paper's commands have built, and room for more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from nextscale.cli.store_options import store_folder
from nextscale.paper.store import FIGURES, KINDS, Entry, Store, in_gigabytes
from nextscale.runtime._text import printable
from nextscale.runtime._wording import shown_value

SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType):
    """Seconds: 12h, 30d or 4w."""

    name = "age"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,6})([hdw])", value, re.ASCII)
        if match is None:
            self.fail(f"{shown_value(value)} is not an age such as 12h, 30d or 4w", param, ctx)
        return float(int(match[1]) * SECONDS[match[2]])


@click.command("clean")
@store_folder
@click.option("--all", "everything", is_flag=True, help="Remove all of it.")
@click.option("--kind", "kinds", type=click.Choice([*KINDS, FIGURES]), multiple=True,
              help="Remove this kind; repeat for several.")  # fmt: skip
@click.option("--older-than", type=Age(), metavar="30d", help="Remove what was last used so long ago: 12h, 30d, 4w.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed; nothing is written.")
def paper_clean(
    folder: Path, everything: bool, kinds: tuple[str, ...], older_than: float | None, dry_run: bool
) -> None:
    """Show what the paper's commands have built and kept, and remove what is asked for.

    Without --all, --kind or --older-than nothing is removed. What another command uses at the moment stays.

    \b
    nextscale paper clean
    nextscale paper clean --kind bundle --older-than 30d
    """
    if everything and (kinds or older_than is not None):
        raise click.UsageError("--all does not go with --kind, --older-than")
    store, console = Store(folder), Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not (everything or kinds or older_than is not None):
        found = store.entries()
        _print(found, console)
        more = "; --all, --kind or --older-than remove" if found else ""
        console.print(f"{_in_all(found)} in {printable(str(folder))}{more}")
        return
    removed, left = store.clean(kinds, older_than, dry_run=dry_run)
    _print(removed, console)
    console.print(f"{'would remove' if dry_run else 'removed'} {_in_all(removed)} of {printable(str(folder))}")
    if left:
        console.print(f"{_in_all(left)} stay: a running command uses them")


def _print(entries: Sequence[Entry], console: Console) -> None:
    if not entries:
        return
    shown = Table("kind", Column("label", no_wrap=True), Column("MB", justify="right"), "last used", box=SIMPLE)
    for entry in entries:
        label = entry.label if entry.complete else f"{entry.label} (begun)"
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        shown.add_row(entry.kind, printable(label), f"{entry.bytes / 1e6:.1f}", used)
    console.width = max(console.width, 120) if not console.is_terminal else console.width
    console.print(shown)


def _in_all(entries: Sequence[Entry]) -> str:
    if not entries:
        return "nothing"
    return f"{len(entries)} {'entries' if len(entries) > 1 else 'entry'}, {in_gigabytes(sum(e.bytes for e in entries))}"
