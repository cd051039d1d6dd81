"""How long a user waits for `nextscale --help`, and for the first picture of bundles, in processes of their own.

    python benchmarks/startup.py out/demo/int8 out/demo/fp32    # writes benchmarks/results/startup.md

Each command runs once before it is timed, so that its files are in the page cache. Nothing else should run meanwhile:
the report says how busy the machine was before.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from provenance import provenance, publish

PROGRAM = str(Path(sys.executable).with_name("nextscale"))
HELP_SECONDS, PICTURE_SECONDS = 0.5, 3.0  # what we promise, on an idle machine


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repetitions", type=click.IntRange(1), default=10)
def main(bundles: tuple[Path, ...], repetitions: int) -> None:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "a.png")
        commands = {"`python -c pass`": ([sys.executable, "-c", "pass"], None)}
        commands["`nextscale --help`"] = ([PROGRAM, "--help"], HELP_SECONDS)
        for bundle in bundles:
            command = [PROGRAM, "generate", str(bundle), "--class", "0", "--out", out]
            commands[f"`nextscale generate {bundle.name}`: one picture"] = (command, PICTURE_SECONDS)
        rows = [row(name, seconds(command, repetitions), bound) for name, (command, bound) in commands.items()]
    publish(
        "startup",
        [
            "# Startup",
            "",
            *provenance(os.cpu_count() or 1),
            f"- load average of the minute before: {load:.1f}"
            + (" (**busy: an idle machine is faster**)" if load > 0.5 else ""),
            f"- {repetitions} processes of each command, from their start to their end",
            "",
            "| command | median, s | fastest, s | slowest, s | promised, s |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


def seconds(command: list[str], repetitions: int) -> list[float]:
    """Of each repetition."""
    found = []
    for _ in range(1 + repetitions):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - began)
    return found[1:]


def row(name: str, found: list[float], bound: float | None) -> str:
    promised = "" if bound is None else f"{bound:g}"
    return f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} | {promised} |"


if __name__ == "__main__":
    main()
