"""What a long-running process keeps in memory after a large batch, with each option, and what the options cost.

Memory: a process for each option and form loads a bundle, then makes one image, a batch, and one image again; resident
memory is read after each call. Time: one image at a time in processes that take turns, as ratios of the same round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click
from progress import log
from provenance import provenance, publish

from nextscale.measure.bundle_contender import FORMS, bundle_contender
from nextscale.measure.contest import Contest
from nextscale.measure.speed import Speed
from nextscale.runtime import Bundle, Generator, SessionOptions

NAME = "memory_returned"
DEFAULTS = "defaults"
WARMUP = 1  # rounds


def settings(threads: int) -> dict[str, SessionOptions]:
    """The options by name; the defaults come first."""
    return {
        DEFAULTS: SessionOptions(threads=threads),
        "memory_arena=False": SessionOptions(threads=threads, memory_arena=False),
        "return_memory=True": SessionOptions(threads=threads, return_memory=True),
    }


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_here(bundle: Path, form: str, options: SessionOptions, batch: int) -> list[float]:
    """Resident MB after loading, after one image, after a batch, and after one image again."""
    generator = Generator(bundle, options)
    generator.load(*FORMS[form])
    found = [resident()]
    for images in (1, batch, 1):
        generator.generate([0] * images, seed=0, on_stage=None if form == "generate" else lambda stage: None)
        found.append(resident())
    return found


def measure_memory(bundle: Path, form: str, options: SessionOptions, batch: int) -> list[float]:
    """The same in a process of its own."""
    words = [str(bundle), form, json.dumps(asdict(options)), str(batch)]
    done = subprocess.run([sys.executable, __file__, "--here", *words], stdout=subprocess.PIPE, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def measure_speeds(bundle: Bundle, form: str, threads: int, rounds: int) -> dict[str, Speed]:
    """Images a second one at a time, by option; ratios refer to the defaults."""
    contenders = [bundle_contender(name, bundle, form, options) for name, options in settings(threads).items()]
    with Contest(contenders, log=log) as contest:
        speeds = contest.speeds(1, repetitions=rounds, warmup=WARMUP, reference=DEFAULTS)
    return {speed.name: speed for speed in speeds}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(2), default=6, show_default=True, help="Images of the large batch.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=10, show_default=True, help="Timed rounds.")
def main(bundle: Path, batch: int, threads: int, rounds: int) -> None:
    """Measure BUNDLE, print and keep the results."""
    lines = [
        "# Memory of a long-running process",
        "",
        *provenance(threads),
        f"- bundle: {bundle.name}; {rounds} rounds of one image in turns, means with 95% confidence intervals",
        "",
        f"Resident MB of a process that makes one image, {batch} at a time, and one again.",
        "",
        f"| form | options | loaded | 1 image | {batch} images | 1 image again | images/s over the defaults' |",
        "|---|---|---|---|---|---|---|",
    ]
    for form in FORMS:
        speeds = measure_speeds(Bundle.open(bundle), form, threads, rounds)
        for name, options in settings(threads).items():
            memory = " | ".join(f"{megabytes:.0f}" for megabytes in measure_memory(bundle, form, options, batch))
            ratio = speeds[name].ratio
            assert ratio is not None
            lines.append(f"| {form} | {name} | {memory} | {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] |")
    publish(NAME, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        _, _, path, form_of, options_of, batch_of = sys.argv
        print(json.dumps(measure_here(Path(path), form_of, SessionOptions(**json.loads(options_of)), int(batch_of))))
    else:
        main()
