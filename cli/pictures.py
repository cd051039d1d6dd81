"""What the commands that make pictures share: a seed, names of files, parameters, progress and previews."""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
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


class Previews:
    """Pictures as they are after each stage but the last, which makes the results.

    Args:
        num_stages: of a picture; 0 where nobody asks for previews.
    """

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._batches: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_stages - 1)]

    def keep(self, result: StageResult) -> None:
        """Decode and keep the batch whose stage is done."""
        if result.stage < len(self._batches):
            self._batches[result.stage].append(result.preview())

    def paths(self, results: Sequence[Path]) -> list[Path]:
        """Of all previews, where the results have these."""
        return [path for stages in range(1, len(self._batches) + 1) for path in after_stages(results, stages)]

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """How many stages were done, and the pictures as they were then, uint8 [B, H, W, 3]; once, and then freed."""
        while self._batches:
            batches = self._batches.pop(0)
            yield self._num_stages - 1 - len(self._batches), np.concatenate(batches)


def after_stages(results: Sequence[Path], stages: int) -> list[Path]:
    """FILE-stage-01.png and so on: the names of previews."""
    return [path.with_stem(f"{path.stem}-stage-{stages:02d}") for path in results]


class StageProgress:
    """Stages done, told on a terminal alone, and kept as previews."""

    def __init__(self, console: Console, images: int, batch: int, num_stages: int, previews: Previews) -> None:
        self.images, self.batch, self.num_stages, self.previews = images, batch, num_stages, previews
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
        self.previews.keep(result)
