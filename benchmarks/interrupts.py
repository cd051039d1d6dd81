"""How long commands go on after Ctrl-C or SIGTERM: each is started many times, and interrupted at another moment.

    python benchmarks/interrupts.py out/demo/photographs/{fp32,int8}    # writes benchmarks/results/interrupts.md

The bundles are of the photograph model, in full precision and int8. A signal is answered well if the process ends
within a second with the one line and exit code 130, and leaves nothing. Before Python has reached our first line,
Python itself answers, or the system; those moments are told apart.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from provenance import provenance, publish

PROGRAM = str(Path(sys.executable).with_name("nextscale"))
LINE = "error: interrupted; nothing half-written was left"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
BOUND_SECONDS = 1.0
WORK = re.compile(r"[\w.-]+\.(partial|learning)")  # what the same command goes on from


@dataclass(frozen=True)
class Answer:
    """What a process did about a signal.

    Attributes:
        moment: seconds from the process's start to the signal.
        seconds: from the signal to the process's end.
        ready: the program had taken its signals before.
        well: it said the one line, exited with 130 and left nothing but work to go on from.
    """

    moment: float
    seconds: float
    ready: bool
    well: bool


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("full_precision", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("int8", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--moments", type=click.IntRange(4), default=24, help="Of each command.")
def main(full_precision: Path, int8: Path, moments: int) -> None:
    reference, bundle = str(full_precision.resolve()), str(int8.resolve())
    picture = ("generate", bundle, "--class", "0", "--out", "a.png")
    # Name, arguments, and the last moment: each command takes longer.
    commands: list[tuple[str, Sequence[str], float]] = [
        ("`generate`", (*picture, "--count", "1000"), 4),
        ("`verify`", ("verify", bundle), 1),
        ("`bench`", ("bench", bundle, "--repetitions", "1000"), 5),
        ("`evaluate`", ("evaluate", reference, bundle, "--images", "1000"), 4),
        ("`calibrate`", ("calibrate", reference, "--images", "1000", "--out", "maps"), 4),
        ("`theta`", ("theta", reference, "--images", "1000"), 5),
        ("`build`", ("build", "demo", "--out", "bundle"), 20),
        ("`build --learn`", ("build", "demo", "--recipe", "default-w8a8", "--learn", "--out", "bundle"), 20),
    ]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, with its children
    load, rows = os.getloadavg()[0], []
    for name, arguments, last in commands:
        # Half of the moments lie in the first half second, where the imports are.
        early = [0.5 * i / (moments // 2) for i in range(moments // 2)]
        late = [0.5 + (last - 0.5) * (i + 1) / (moments // 2) for i in range(moments // 2)]
        times = [moment for moment in (*early, *late) if moment <= last]
        answers = [interrupted(arguments, *each) for each in zip(times, itertools.cycle(SIGNALS), strict=False)]
        rows.append(row(name, answers))
        print(rows[-1], file=sys.stderr, flush=True)
    publish(
        "interrupts",
        [
            "# From a signal to the end of a command",
            "",
            *provenance(os.cpu_count() or 1),
            f"- load average of the minute before: {load:.1f}",
            f"- SIGINT and SIGTERM by turns; answered well: exit code 130, `{LINE}` as the last line, and no file "
            "but the work that the same command goes on from",
            "",
            "| command | moments | answered well | slowest, s | at, s | over 1 s | before our first line | until, s |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ],
    )


def interrupted(arguments: Sequence[str], moment: float, number: signal.Signals) -> Answer:
    """Start the program in a folder of its own and send the signal."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [PROGRAM, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(moment)
        ready = catches(process.pid)
        if process.poll() is not None:
            raise click.ClickException(f"{' '.join(arguments)} ended within {moment:.2f} s: {process.communicate()[1]}")
        began = time.perf_counter()
        process.send_signal(number)
        error = process.communicate()[1]
        seconds = time.perf_counter() - began
        last = error.splitlines()[-1:]  # warnings, and where finished work lies, may stand before
        left = [name for name in os.listdir(folder) if not WORK.fullmatch(name)]
        return Answer(moment, seconds, ready, process.returncode == 130 and last == [LINE] and not left)


def catches(pid: int) -> bool:
    """Whether the process has taken SIGTERM, which Python does not by itself."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def row(name: str, answers: Sequence[Answer]) -> str:
    ready = [answer for answer in answers if answer.ready]
    early = [answer for answer in answers if not answer.ready]
    slowest = max(answers, key=lambda answer: answer.seconds)
    over = ", ".join(f"{a.seconds:.1f} at {a.moment:.1f}" for a in answers if a.seconds > BOUND_SECONDS)
    well = f"{sum(answer.well for answer in ready)} of {len(ready)}"
    until = f"{max(answer.moment for answer in early):.2f}" if early else ""
    return (
        f"| {name} | {len(answers)} | {well} | {slowest.seconds:.2f} | {slowest.moment:.2f} | {over or 'none'} | "
        f"{len(early)} | {until} |"
    )


if __name__ == "__main__":
    main()
