"""What the commands that make pictures share: a seed, names of files, parameters, and stages done on a terminal."""

import secrets
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nextscale import __version__
from nextscale.runtime._next_scale_loop import Generator, StageResult

_DRAWN_SEEDS = 2**53  # exact in every language's JSON


def told_seed(seed: int | None) -> int:
    """The seed, or, for "random", one that is drawn and told on stderr."""
    if seed is None:
        seed = secrets.randbelow(_DRAWN_SEEDS)
        click.echo(f"seed {seed}", err=True)
    return seed


def numbered(path: Path, count: int) -> list[Path]:
    """FILE-0000.png and so on."""
    return [path.with_stem(f"{path.stem}-{number:04d}") for number in range(count)]


def parameters_of(generator: Generator, sampling: dict[str, Any]) -> dict[str, Any]:
    """What a picture holds of what made it."""
    manifest = generator.bundle.manifest
    return {
        "software": f"nextscale {__version__}",
        "bundle": manifest.name,
        "recipe": manifest.recipe["name"],
        "operators": generator.ops.variant,
        **sampling,
    }


class StageProgress:
    """Stages done, on a terminal; nothing elsewhere."""

    def __init__(self, console: Console, images: int, batch: int, num_stages: int) -> None:
        self.images, self.batch, self.num_stages = images, batch, num_stages
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console, disable=console.quiet or not console.is_terminal)
        self.task = self.bar.add_task("loading", total=-(-images // batch) * num_stages)

    def __enter__(self) -> "StageProgress":
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.bar.disable:
            self.bar.stop()

    def advance(self, result: StageResult) -> None:
        last = min(result.first + self.batch, self.images)
        which = f"image {last}" if last == result.first + 1 else f"images {result.first + 1}-{last}"
        text = f"{which} of {self.images}, stage {result.stage + 1} of {result.num_stages}"
        self.bar.update(self.task, advance=1, description=text)
