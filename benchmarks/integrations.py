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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from progress import log
from provenance import RESULTS, circumstances, provenance, publish

from nextscale.measure.bundle_contender import FORMS, bundle_contender
from nextscale.measure.contender import Contender, Worker
from nextscale.measure.contest import Contest
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.provenance import finite
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval, mean_interval
from nextscale.runtime import Bundle, NextscaleError, SessionOptions

NAME = "integrations"
PYTHON = "Python"
DEFAULTS = "defaults"
FOUR_IMAGES = "4 images at a time"
WARMUP = 2  # rounds


@dataclass(frozen=True)
class Start:
    """Of one program as a whole process.

    Attributes:
        seconds: to the written picture.
        samples: of each start.
    """

    seconds: Interval
    samples: list[float]


def measure_speeds(
    contenders: Sequence[Contender], rounds: int, batches: Mapping[str, int] | None = None
) -> dict[str, Speed]:
    """How fast programs are, by name; ratios refer to the first.

    Args:
        contenders: the programs.
        rounds: timed ones.
        batches: images a turn by name, where it is more than one.
    Raises:
        NextscaleError: a program cannot be started, fails, or runs on another release of ONNX Runtime than the first.
    """
    with Contest(contenders, log=log) as contest:
        for worker in contest.workers:
            _require_release(worker, contest.workers[0])
        speeds = contest.speeds(
            {contender.name: (batches or {}).get(contender.name, 1) for contender in contenders},
            repetitions=rounds,
            warmup=WARMUP,
            reference=contenders[0].name,
        )
    return {speed.name: speed for speed in speeds}


def _require_release(worker: Worker, first: Worker) -> None:
    release, expected = (item.versions.get("onnxruntime") for item in (worker, first))
    if release != expected:
        raise NextscaleError(
            f"{worker.contender.name} runs on onnxruntime {release}, {first.contender.name} on {expected}: build the "
            "programs again with `make examples`"
        )


def measure_starts(commands: Mapping[str, Sequence[str]], starts: int) -> dict[str, Start]:
    """Start every program once a round; what it writes goes to the file that ends its command."""
    with tempfile.TemporaryDirectory() as folder:

        def start(name: str) -> Callable[[int], float]:
            picture = Path(folder, "picture.png")

            def run(done: int) -> None:
                ended = subprocess.run([*commands[name], str(picture)], capture_output=True, text=True, check=False)
                if ended.returncode != 0 or not picture.exists():
                    raise NextscaleError(f"{name}: {' '.join(ended.stderr.split()) or 'it wrote no picture'}")
                picture.unlink()

            return timed(run)

        seconds = interleave({name: start(name) for name in commands}, repetitions=starts, log=log)
    return {name: Start(mean_interval(found), found) for name, found in seconds.items()}


def languages(bundle: Bundle, form: str, threads: int, cpp: Path, csharp: Path) -> list[Contender]:
    """A bundle in the three languages; Python comes first."""
    arguments = (str(bundle.path), "--form", form, "--threads", str(threads))
    return [
        bundle_contender(PYTHON, bundle, form, SessionOptions(threads=threads)),
        Contender("C++", (str(cpp / "bench"), *arguments, "--worker")),
        Contender("C#", (str(csharp / "nextscale"), "bench-worker", *arguments)),
    ]


def start_commands(bundle: Bundle, threads: int, cpp: Path, csharp: Path) -> dict[str, list[str]]:
    """The programs that write one picture to the file named after these words."""
    arguments = [str(bundle.path), "--class", "0", "--seed", "0", "--threads", str(threads), "--out"]
    return {
        "C++": [str(cpp / "generate"), *arguments],
        "C#": [str(csharp / "nextscale"), "generate", *arguments],
        PYTHON: [sys.executable, "-c", "from nextscale.cli.main import main; main()", "generate", *arguments],
    }


def with_options(bundle: Bundle, threads: int) -> list[Contender]:
    """The bundle with what docs/integrate.md gives advice on; the defaults come first."""
    defaults = SessionOptions(threads=threads)
    settings = {
        DEFAULTS: defaults,
        **({"1 thread": SessionOptions(threads=1)} if threads > 1 else {}),
        FOUR_IMAGES: defaults,
        "no spinning": replace(defaults, spinning=False),
        "no memory arena": replace(defaults, memory_arena=False),
        "memory pattern": replace(defaults, memory_pattern=True),
    }
    return [bundle_contender(name, bundle, "generate", options) for name, options in settings.items()]


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
    document = {**circumstances({"threads": threads, "rounds": rounds, "starts": starts}), "bundles": found}
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
    options = measure_speeds(with_options(bundle, threads), rounds, {FOUR_IMAGES: 4})
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
        f"- {rounds} rounds, {ORDER}, one image a turn where nothing else is said; ratios are "
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
    over_first = "1" if first else _interval(speed["ratio"], 3)
    rate, megabytes = speed["images_per_second"]["mean"], speed["peak_memory_bytes"] / 1e6
    return f"{over_first} | {rate:.3g} | {megabytes:.0f} | {speed['load_seconds']:.2f}"


def _interval(interval: Mapping[str, float], places: int) -> str:
    mean, low, high = (f"{interval[key]:.{places}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
