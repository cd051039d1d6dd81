"""How long a user waits for `nextscale --help`, and for the first picture of bundles, in processes of their own.

    python benchmarks/startup.py out/demo/photographs/{int8,fp32}    # writes benchmarks/results/startup.md

Each command runs once before it is timed, so that its files are in the page cache. Nothing else should run meanwhile:
the report says how busy the machine was before.
"""

from __future__ import annotations

import os
import resource
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
        rows = [row(name, *timed(command, repetitions), bound) for name, (command, bound) in commands.items()]
    publish(
        "startup",
        [
            "# Startup",
            "",
            *provenance(os.cpu_count() or 1),
            f"- load average of the minute before: {load:.1f}"
            + (" (**busy: an idle machine is faster**)" if load > 0.5 else ""),
            f"- {repetitions} processes of each command, from their start to their end; CPU: of all threads together",
            "",
            "| command | median, s | fastest, s | slowest, s | CPU, s | promised, s |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
    )


def timed(command: list[str], repetitions: int) -> tuple[list[float], float]:
    """Seconds of each repetition, and those that its threads worked, as a mean."""
    run(command)
    worked, found = children_cpu(), []
    for _ in range(repetitions):
        began = time.perf_counter()
        run(command)
        found.append(time.perf_counter() - began)
    return found, (children_cpu() - worked) / repetitions


def run(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(name: str, found: list[float], cpu: float, bound: float | None) -> str:
    promised = "" if bound is None else f"{bound:g}"
    middle, fastest, slowest = statistics.median(found), min(found), max(found)
    return f"| {name} | {middle:.2f} | {fastest:.2f} | {slowest:.2f} | {cpu:.2f} | {promised} |"


if __name__ == "__main__":
    main()
