"""Progress of long commands: each step a line with its bar and time on stderr, if that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from nextscale.runtime._interrupts import tell, when_interrupted


class Steps:
    """Shows a step until the next one is told of, or it finishes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._current: tuple[str, TaskID] | None = None

    def __call__(self, step: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """`step` begins, or has `done` of `total`; `note` stands behind its bar."""
        if self._current is None or self._current[0] != step:
            self.finish()
            self._current = (step, self._progress.add_task(step, total=total or None, note=note))
        self._progress.update(self._current[1], completed=done, note=note)

    def finish(self) -> None:
        """The step is done."""
        if self._current is not None:
            task = self._current[1]
            total = self._progress.tasks[task].total or 1
            self._progress.update(task, total=total, completed=total)


@contextmanager
def show_steps() -> Iterator[Steps]:
    """What a long function tells goes to stderr, if that is a terminal."""
    with Progress(
        SpinnerColumn("line"),  # in ASCII, for consoles of any encoding
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # what the texts leave of the line
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, quiet=not sys.stderr.isatty()),
        expand=True,
    ) as progress:
        steps = Steps(progress)
        yield steps
        steps.finish()


@contextmanager
def show_resumable_steps(work: Path) -> Iterator[Steps]:
    """`show_steps`; Ctrl-C is told where finished work is kept, if there is any in the folder `work`."""

    def tell_where() -> None:
        if work.exists():
            tell(f"what is finished is in {work}; the same command goes on from there")

    with when_interrupted(tell_where), show_steps() as steps:
        yield steps
