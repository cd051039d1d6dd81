"""C++ and C# against Python on the same bundles, and what threads and memory options cost: docs/integrate.md's figures.

`make examples` builds the programs. Every measurement keeps its programs waiting in processes of their own and asks
each once a round, in a new order each round, so that a slow minute slows all alike. Three of them for each bundle:

- languages: a batch in both forms; images/s over Python's is of the same round;
- starts: whole processes, from their start to the written PNG, with the files in the system's cache;
- options: threads, memory and batch in Python, one call of generate.onnx; the options are ONNX Runtime's, so that what
  they do is the same in every language.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from provenance import RESULTS, commit, provenance, publish

from nextscale.measure.bench import FORMS, finite
from nextscale.measure.contender import Contender, Worker, bundle_contender
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.runtime import Bundle, NextscaleError, SessionOptions
from nextscale.runtime.machine import describe_machine, versions

NAME = "integrations"
PYTHON = "Python"
DEFAULTS = "defaults"
PAUSE = 0.05  # seconds between turns, in which the last program's threads stop spinning
WARM_UP = 2  # rounds


@dataclass(frozen=True)
class Turn:
    """A program in one setting.

    Attributes:
        contender: the program.
        batch: images a turn.
    """

    contender: Contender
    batch: int = 1


@dataclass(frozen=True)
class Speed:
    """Of one program in one setting.

    Attributes:
        images_per_second: from the mean of a turn's seconds.
        over_first: images/s over the first program's of the same round.
        peak_bytes: of the process.
        load_seconds: what it took until it could generate.
        samples: seconds of each round's batch.
    """

    images_per_second: Interval
    over_first: Interval
    peak_bytes: int
    load_seconds: float
    samples: list[float]


@dataclass(frozen=True)
class Start:
    """Of one program as a whole process.

    Attributes:
        seconds: to the written picture.
        samples: of each start.
    """

    seconds: Interval
    samples: list[float]


def measure_speeds(turns: Mapping[str, Turn], rounds: int) -> dict[str, Speed]:
    """Ask every program once a round for a batch of a seed that is the round's.

    Raises:
        NextscaleError: a program cannot be started, fails, or runs on another release of ONNX Runtime than the first.
    """
    names = list(turns)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(turn.contender)) for name, turn in turns.items()}
        for worker in workers.values():
            _require_release(worker, workers[names[0]])
        for done in range(-WARM_UP, rounds):
            log(f"round {done + 1} of {rounds}" if done >= 0 else "warming up")
            for name in shuffled(names, done):
                time.sleep(PAUSE)
                reply = workers[name].request(turns[name].batch, seed=done + WARM_UP)
                peaks[name] = reply.peak_memory_bytes
                if done >= 0:
                    seconds[name].append(reply.seconds / turns[name].batch)
        loads = {name: worker.load_seconds for name, worker in workers.items()}
    return {
        name: Speed(
            mean_interval(found).inverted(), ratio_interval(seconds[names[0]], found), peaks[name], loads[name], found
        )
        for name, found in seconds.items()
    }


def _require_release(worker: Worker, first: Worker) -> None:
    release, expected = (item.versions.get("onnxruntime") for item in (worker, first))
    if release != expected:
        raise NextscaleError(
            f"{worker.contender.name} runs on onnxruntime {release}, {first.contender.name} on {expected}: build the "
            "programs again with `make examples`"
        )


def measure_starts(commands: Mapping[str, Sequence[str]], starts: int) -> dict[str, Start]:
    """Start every program once a round; what it writes goes to the file that ends its command."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for done in range(-1, starts):
            log(f"start {done + 1} of {starts}" if done >= 0 else "reading the files once")
            for name in shuffled(list(commands), done):
                time.sleep(PAUSE)
                picture = Path(folder, f"{done}.png")
                begin = time.perf_counter()
                ended = subprocess.run([*commands[name], str(picture)], capture_output=True, text=True, check=False)
                taken = time.perf_counter() - begin
                if ended.returncode != 0 or not picture.exists():
                    raise NextscaleError(f"{name}: {' '.join(ended.stderr.split()) or 'it wrote no picture'}")
                picture.unlink()
                if done >= 0:
                    seconds[name].append(taken)
    return {name: Start(mean_interval(found), found) for name, found in seconds.items()}


def shuffled(names: Sequence[str], done: int) -> list[str]:
    """The order of a round."""
    return [names[place] for place in np.random.default_rng(done + WARM_UP).permutation(len(names))]


def languages(bundle: Bundle, form: str, threads: int, cpp: Path, csharp: Path) -> dict[str, Turn]:
    """A bundle in the three languages; Python comes first."""
    arguments = (str(bundle.path), "--form", form, "--threads", str(threads))
    return {
        PYTHON: Turn(bundle_contender(PYTHON, bundle, form, SessionOptions(threads=threads))),
        "C++": Turn(Contender("C++", (str(cpp / "bench"), *arguments, "--worker"))),
        "C#": Turn(Contender("C#", (str(csharp / "nextscale"), "bench-worker", *arguments))),
    }


def start_commands(bundle: Bundle, threads: int, cpp: Path, csharp: Path) -> dict[str, list[str]]:
    """The programs that write one picture to the file named after these words."""
    arguments = [str(bundle.path), "--class", "0", "--seed", "0", "--threads", str(threads), "--out"]
    return {
        "C++": [str(cpp / "generate"), *arguments],
        "C#": [str(csharp / "nextscale"), "generate", *arguments],
        PYTHON: [sys.executable, "-c", "from nextscale.cli.main import main; main()", "generate", *arguments],
    }


def option_turns(bundle: Bundle, threads: int) -> dict[str, Turn]:
    """The bundle with what docs/integrate.md gives advice on; the defaults come first."""

    def turn(name: str, batch: int = 1, **options: Any) -> Turn:
        settings = SessionOptions(**{"threads": threads, **options})
        return Turn(bundle_contender(name, bundle, "generate", settings), batch)

    return {
        DEFAULTS: turn(DEFAULTS),
        **({"1 thread": turn("1 thread", threads=1)} if threads > 1 else {}),
        "4 images at a time": turn("4 images at a time", batch=4),
        "no spinning": turn("no spinning", spinning=False),
        "no memory arena": turn("no memory arena", memory_arena=False),
        "memory pattern": turn("memory pattern", memory_pattern=True),
    }


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=30, show_default=True, help="Of languages and options.")
@click.option("--starts", type=click.IntRange(2), default=15, show_default=True)
@click.option("--cpp", type=click.Path(path_type=Path), default=Path("build/cpp"), show_default=True)
@click.option("--csharp", type=click.Path(path_type=Path), default=Path("build/csharp"), show_default=True)
def main(bundles: tuple[Path, ...], threads: int, rounds: int, starts: int, cpp: Path, csharp: Path) -> None:
    """Measure BUNDLES, print and keep the results."""
    try:
        opened = {str(path): Bundle.open(path) for path in bundles}
        found = {name: _measure(bundle, threads, rounds, starts, cpp, csharp) for name, bundle in opened.items()}
    except NextscaleError as error:
        sys.exit(f"error: {error}")
    publish(NAME, _report(found, opened, threads, rounds, starts))
    document = {
        "commit": commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {"threads": threads, "rounds": rounds, "starts": starts},
        "bundles": found,
    }
    (RESULTS / f"{NAME}.json").write_text(json.dumps(finite(document), indent=1) + "\n", encoding="utf-8")


def _measure(bundle: Bundle, threads: int, rounds: int, starts: int, cpp: Path, csharp: Path) -> dict[str, Any]:
    speeds = {}
    for form in FORMS:
        log(f"{bundle.path}, {form}")
        found = measure_speeds(languages(bundle, form, threads, cpp.absolute(), csharp.absolute()), rounds)
        speeds[form] = {name: asdict(speed) for name, speed in found.items()}
    log(f"{bundle.path}, starts")
    started = measure_starts(start_commands(bundle, threads, cpp.absolute(), csharp.absolute()), starts)
    log(f"{bundle.path}, options")
    options = measure_speeds(option_turns(bundle, threads), rounds)
    return {
        "recipe": bundle.manifest.recipe["name"],
        "languages": speeds,
        "starts": {name: asdict(start) for name, start in started.items()},
        "options": {name: asdict(speed) for name, speed in options.items()},
    }


def _report(
    found: Mapping[str, Any], bundles: Mapping[str, Bundle], threads: int, rounds: int, starts: int
) -> list[str]:
    lines = [
        "# C++ and C# beside Python",
        "",
        *provenance(threads),
        f"- {rounds} interleaved rounds in a new order each, one image a turn where nothing else is said; ratios are "
        "of the same round: geometric mean and 95% interval; peak memory and load time are those of one process",
        f"- start to first image: the whole process, to the written PNG, {starts} interleaved starts with the files in "
        "the system's cache; mean, 95% interval and the slowest",
    ]
    for folder, results in found.items():
        model = bundles[folder].model
        lines += ["", f"## {folder}: {results['recipe']}, {model.image_side} px", ""]
        lines += ["| form | language | images/s over Python | images/s | peak MB | load, s |", "|---" * 6 + "|"]
        for form, speeds in results["languages"].items():
            lines += [
                f"| {form} | {language} | {_speed(speed, language == PYTHON)} |" for language, speed in speeds.items()
            ]
        lines += ["", "| start to first image, s | mean | slowest |", "|---" * 3 + "|"]
        for language, start in results["starts"].items():
            lines.append(f"| {language} | {_interval(start['seconds'], 2)} | {max(start['samples']):.2f} |")
        lines += ["", "| options | images/s over the defaults | images/s | peak MB | load, s |", "|---" * 5 + "|"]
        lines += [f"| {name} | {_speed(speed, name == DEFAULTS)} |" for name, speed in results["options"].items()]
    return lines


def _speed(speed: Mapping[str, Any], first: bool) -> str:
    over_first = "1" if first else _interval(speed["over_first"], 3)
    rate, megabytes = speed["images_per_second"]["mean"], speed["peak_bytes"] / 1e6
    return f"{over_first} | {rate:.3g} | {megabytes:.0f} | {speed['load_seconds']:.2f}"


def _interval(interval: Mapping[str, float], places: int) -> str:
    mean, low, high = (f"{interval[key]:.{places}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def log(line: str) -> None:
    """Tell the user how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
