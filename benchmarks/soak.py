"""What takes too long for every commit: releases of ONNX Runtime, memory errors on a real model, many more examples.

    make soak    # builds what this needs, runs it, and writes benchmarks/results/soak.md

Each release that is allowed gets an environment of its own with the wheel, as an app would have it: it verifies both
bundles, and its token maps are compared with those of the release that is installed here. Another may round otherwise,
and one token that is sampled otherwise changes those of all later stages: to fail is not to have other tokens, but to
refuse a bundle or not to pass `nextscale verify`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from provenance import provenance, publish

ROOT = Path(__file__).parents[1]
# The last patch of each minor release that pyproject.toml allows.
RELEASES = "1.22.1,1.23.2,1.24.4,1.25.1,1.26.0,1.27.0,1.28.0,1.29.0,1.30.0,1.31.1,1.32.0"
PROPERTIES = (  # files whose tests draw examples with hypothesis
    "tests/calib_data/test_choose_theta.py",
    "tests/calib_data/test_kept_entries.py",
    "tests/calib_data/test_match_probabilities.py",
    "tests/export/test_sampling_graph.py",
    "tests/graph_passes/test_qparams.py",
    "tests/graph_passes/test_shift_and_sum_mathematics.py",
    "tests/simulation/test_fake_quantizers.py",
)
IMAGES = ["--class", "goldfish", "--class", "school bus", "--count", "4", "--seed", "0"]


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    check: str
    passed: bool
    detail: str
    seconds: float

    def __str__(self) -> str:
        return f"| {self.check} | {'passed' if self.passed else 'FAILED'} | {self.detail} | {self.seconds:.0f} |"


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--releases", default=RELEASES, help="Of ONNX Runtime, separated by commas.")
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
        for bundle in bundles:
            add(sanitized(bundle, conformance, work / f"suite-{bundle.name}"))
        wheel = build_wheel(work)
        expected = {bundle: generated(Path(sys.executable).parent, bundle, work, threads) for bundle in bundles}
        for release in releases.split(","):
            add(one_release(release, wheel, expected, work / release, threads))
    publish("soak", report(outcomes, threads))
    sys.exit(not all(outcome.passed for outcome in outcomes))


def examples() -> Outcome:
    """The tests that draw examples, with the profile that draws many (tests/conftest.py)."""
    began = time.monotonic()
    done = run([sys.executable, "-m", "pytest", "-q", "--hypothesis-profile", "soak", *PROPERTIES], ROOT)
    return Outcome("2,000 examples of each property", done.returncode == 0, last_line(done), time.monotonic() - began)


def sanitized(bundle: Path, conformance: Path, suite: Path) -> Outcome:
    """The conformance suite of a bundle in C++, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    began = time.monotonic()
    make = [sys.executable, "-m", "conformance.make_suite", str(suite), "--bundle", str(bundle.absolute())]
    done = run(make, ROOT / "tests")
    if done.returncode == 0:
        done = run([str(conformance), str(suite)], ROOT)
    check = f"C++ under sanitizers, {bundle.name}"
    return Outcome(check, done.returncode == 0, last_line(done), time.monotonic() - began)


def one_release(
    release: str, wheel: Path, expected: dict[Path, NDArray[np.int64]], folder: Path, threads: int
) -> Outcome:
    """An environment with that release, both bundles in it."""
    began, check = time.monotonic(), f"onnxruntime {release}"
    programs = folder / "bin"
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(programs / "pip"), "install", "--quiet", f"onnxruntime=={release}", str(wheel)],
    ):
        done = run(command, ROOT)
        if done.returncode != 0:
            return Outcome(check, False, last_line(done), time.monotonic() - began)
    details = []
    for bundle, token_maps in expected.items():
        done = run([str(programs / "nextscale"), "verify", str(bundle), "--threads", str(threads)], ROOT)
        if done.returncode != 0:
            return Outcome(check, False, f"{bundle.name}: {last_line(done)}", time.monotonic() - began)
        found = generated(programs, bundle, folder, threads)
        same = np.mean(found == token_maps)
        details.append(f"{bundle.name}: {'all' if same == 1 else f'{same:.1%}'} of the sampled tokens the same")
    return Outcome(check, True, "; ".join(details), time.monotonic() - began)


def generated(programs: Path, bundle: Path, folder: Path, threads: int) -> NDArray[np.int64]:
    """Token maps [8, L] that an environment's `nextscale generate` samples."""
    out = folder / f"{bundle.name}.npz"
    command = [str(programs / "nextscale"), "generate", str(bundle), *IMAGES, "--npz", str(out)]
    done = run([*command, "--threads", str(threads), "--quiet"], ROOT)
    if done.returncode != 0:
        raise click.ClickException(last_line(done))
    with np.load(out) as arrays:
        return np.asarray(arrays["token_maps"], np.int64)


def build_wheel(work: Path) -> Path:
    """The wheel of this checkout."""
    done = run([sys.executable, "-m", "build", "--wheel", "--outdir", str(work / "wheel"), str(ROOT)], ROOT)
    if done.returncode != 0:
        raise click.ClickException(last_line(done))
    (wheel,) = (work / "wheel").iterdir()
    return wheel


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
        "- releases: `nextscale verify` of each bundle, and the token maps of 8 images against those of the release "
        "above: one token that is sampled otherwise changes those of all later stages",
        "",
        "| check | | | seconds |",
        "|---|---|---|---|",
        *map(str, outcomes),
    ]


if __name__ == "__main__":
    main()
