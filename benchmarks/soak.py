"""What takes too long for every commit: releases of ONNX Runtime, memory errors on a real model, many more examples.

    make soak    # builds what this needs, runs it, and writes benchmarks/results/soak.md

Of the releases that are allowed, benchmarks/releases.py says what passes: to fail is not to have other tokens, but to
refuse a bundle, not to pass `nextscale verify`, or to run an integer layer in float.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from kernels_soak import soak
from provenance import provenance, publish
from releases import RELEASES, Failure, Result, compare, passes

ROOT = Path(__file__).parents[1]
PROPERTIES = (  # whose tests draw examples with hypothesis, or do more there (tests/soak.py)
    "tests/calib_data/test_choose_theta.py",
    "tests/calib_data/test_kept_entries.py",
    "tests/calib_data/test_match_probabilities.py",
    "tests/export/test_sampling_graph.py",
    "tests/graph_passes/test_qparams.py",
    "tests/graph_passes/test_shift_and_sum_mathematics.py",
    "tests/kernels",
    "tests/simulation/test_fake_quantizers.py",
)
PYTEST = (sys.executable, "-m", "pytest", "-q", "--numprocesses", "2")
IMAGES = 8  # in each release
KERNELS_SECONDS = 60.0  # of each flavor


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    check: str
    passed: bool | None  # None: it could not be run here
    detail: str

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: ""}[self.passed]
        return f"| {self.check} | {verdict} | {self.detail} |"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--releases", default=",".join(RELEASES), help="Of ONNX Runtime, separated by commas.")
@click.option("--conformance", type=click.Path(path_type=Path), default=ROOT / "build/cpp-sanitize/conformance")
@click.option("--threads", default=2)
def main(bundles: tuple[Path, ...], releases: str, conformance: Path, threads: int) -> None:
    outcomes = list[Outcome]()

    def add(outcome: Outcome) -> None:
        outcomes.append(outcome)
        print(outcome, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        add(examples())
        for name, passed, detail in soak(KERNELS_SECONDS):
            add(Outcome(f"kernels_check, {name}", passed, detail.replace("|", "/")))
        for bundle in bundles:
            add(sanitized(bundle, conformance, work / f"suite-{bundle.name}"))
        for release, results in compare(bundles, releases.split(","), work, IMAGES, threads).items():
            add(one_release(release, results))
    publish("soak", report(outcomes, threads))
    sys.exit(any(outcome.passed is False for outcome in outcomes))


def examples() -> Outcome:
    """The tests that draw examples, with the profile that draws many (tests/conftest.py)."""
    done = run([*PYTEST, "--hypothesis-profile", "soak", *PROPERTIES], ROOT)
    return Outcome(
        "2,000 examples of each property, 1,000 sessions, a wheel for older systems",
        done.returncode == 0,
        last_line(done),
    )


def sanitized(bundle: Path, conformance: Path, suite: Path) -> Outcome:
    """The conformance suite of a bundle in C++, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    make = [sys.executable, "-m", "conformance.make_suite", str(suite), "--bundle", str(bundle.absolute())]
    done = run(make, ROOT / "tests")
    if done.returncode == 0:
        done = run([str(conformance), str(suite)], ROOT)
    check = f"C++ under sanitizers, {bundle.name}"
    return Outcome(check, done.returncode == 0, last_line(done))


def one_release(release: str, results: Mapping[str, Result | Failure]) -> Outcome:
    """What releases.py found."""
    failures = [
        f"{name}: {result.error if isinstance(result, Failure) else result.verified}"
        for name, result in results.items()
        if not passes(result)
    ]
    same = [
        f"{name}: {'all' if result.same_tokens == 1 else f'{result.same_tokens:.1%}'} of the sampled tokens the same"
        for name, result in results.items()
        if isinstance(result, Result) and result.same_tokens is not None
    ]
    return Outcome(f"onnxruntime {release}", not failures, "; ".join(failures or same))


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a program said last: of its errors if it failed."""
    text = (done.stderr if done.returncode != 0 else "") or done.stdout
    return text.strip().rpartition("\n")[2].replace("|", "/") or f"exit code {done.returncode}"


def report(outcomes: list[Outcome], threads: int) -> list[str]:
    """Markdown."""
    return [
        "# What takes too long for every commit",
        "",
        *provenance(threads),
        f"- releases: benchmarks/releases.py on these bundles, {IMAGES} images; tokens against those of the release "
        "above: one that is sampled otherwise changes those of all later stages",
        "",
        "| check | | |",
        "|---|---|---|",
        *map(str, outcomes),
    ]


if __name__ == "__main__":
    main()
