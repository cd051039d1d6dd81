"""Hold the programs of examples/ to Python: the same pictures, a measurement's protocol, one-line errors, no telemetry.

    PYTHONPATH=tests python -m conformance.check_programs SUITE TEXT_SUITE --cpp build/cpp --csharp build/csharp

These are folders that make_suite wrote, the second one with --family text. `conformance OUT` of each language checks
the libraries; this checks what is built around them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from phones_home import phones_home
from PIL import Image

from nextscale.measure.contender import Contender, Worker
from nextscale.runtime import Bundle, Generator, NextscaleError, SessionOptions
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._manifest_reader import SCHEMA

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASS, SEED = 3, 7  # the seed is that of the programs in examples/minimal
FORMS = ("generate", "streaming")
PICTURE = ("--class", CLASS, "--seed", SEED, "--out")
PROMPT = ("--prompt", "a fox", "--negative", "dull", "--ratio", "2:3", "--tau", 0.5, "--seed", SEED, "--out")
PROMPTED = {"prompts": ["a fox"], "negative": "dull", "ratio": "2:3", "tau": 0.5, "seed": SEED}
REFUSED = 2  # the exit code of bad input
STOCK = SessionOptions(threads=1, ops="stock")  # which programs run that are given no library
MANY = 2000  # images at a time
# Bytes that a program may have: the first of them in which mono itself does not run out of memory, and aborts.
LITTLE_MEMORY = (100 << 20, 150 << 20, 200 << 20)
MONO_HAS_NO_MEMORY = "Could not allocate"


@dataclass(frozen=True)
class Programs:
    """How the programs of a language are started; None: it has none of that kind."""

    language: str
    minimal: tuple[str, ...]
    with_progress: tuple[str, ...] | None = None
    edit: tuple[str, ...] | None = None
    generate: tuple[str, ...] | None = None
    bench: tuple[str, ...] | None = None
    worker: tuple[str, ...] | None = None


def check_programs(suite: Path, texts: Path, cpp: Path, csharp: Path) -> Iterator[tuple[str, str | None]]:
    """Run every program on every good bundle of the suite and on a broken one, and those that take prompts on one.

    Args:
        suite: a folder that make_suite wrote.
        texts: another, of the family of text.
        cpp, csharp: the folders of the built programs.
    Yields:
        what was checked, and what is wrong with it, or None.
    """
    document = json.loads((suite / "suite.json").read_text())
    names = dict.fromkeys(request["bundle"] for request in document["requests"])
    bundles = [suite / name for name in names if _takes_classes(Bundle.open(suite / name).manifest)]
    broken = next(suite / case["bundle"] for case in document["broken_bundles"] if case["name"] == "no manifest")
    nextscale = f"{csharp}/nextscale"
    languages = (
        Programs("Python", (sys.executable, f"{EXAMPLES}/minimal/minimal.py")),
        Programs(
            "C++",
            minimal=(f"{cpp}/minimal/minimal",),
            with_progress=(f"{cpp}/minimal/with_progress",),
            edit=(f"{cpp}/minimal/edit",),
            generate=(f"{cpp}/generate",),
            bench=(f"{cpp}/bench",),
            worker=(f"{cpp}/bench", "--worker"),
        ),
        Programs(
            "C#",
            minimal=(f"{csharp}/Minimal",),
            with_progress=(f"{csharp}/WithProgress",),
            edit=(f"{csharp}/Edit",),
            generate=(nextscale, "generate"),
            bench=(nextscale, "bench"),
            worker=(nextscale, "bench-worker"),
        ),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for bundle in bundles:
            [picture] = Generator(bundle, STOCK).generate([CLASS], seed=SEED).images
            for programs in languages:
                for what, wrong in _check_language(programs, bundle, picture, folder):
                    yield f"{programs.language}, {what}, {bundle}", wrong
        for request in [request for request in document["requests"] if request["ops"] == "fused"][:1]:
            options = SessionOptions(threads=1, ops="fused", ops_library=request["ops_library"])
            [picture] = Generator(suite / request["bundle"], options).generate([CLASS], seed=SEED).images
            for programs in languages:
                if programs.generate:
                    ops = ("--ops", "fused", "--ops-library", request["ops_library"])
                    command = (*programs.generate, suite / request["bundle"], *ops, *PICTURE)
                    yield f"{programs.language}, fused graphs", draws(command, folder / "fused.png", picture, lines=1)
        for programs in languages:
            for what, wrong in _check_telemetry(programs, bundles[0], folder):
                yield f"{programs.language}, {what}, {bundles[0]}", wrong
        largest = max(bundles, key=lambda bundle: Bundle.open(bundle).manifest.size)
        for programs in languages:
            for what, wrong in _check_memory(programs, largest, folder):
                yield f"{programs.language}, {what}, {largest}", wrong
        prompted = texts / "bundles" / "fake-sizes"
        for programs in languages:
            if programs.generate:
                for what, wrong in _check_prompts(programs.generate, prompted, bundles[0], folder):
                    yield f"{programs.language}, {what}, {prompted}", wrong
        for programs in languages:
            for what, wrong in _check_errors(programs, broken, folder):
                yield f"{programs.language}, {what}, {broken}", wrong


def _takes_classes(manifest: Manifest) -> bool:
    """Whether all programs can draw from the bundle; minimal.py reads the newest schema alone."""
    return manifest.schema == SCHEMA and manifest.input_of_kind("label") is not None


def _check_language(
    programs: Programs, bundle: Path, picture: NDArray[np.uint8], folder: Path
) -> Iterator[tuple[str, str | None]]:
    ppm, png = folder / "picture.ppm", folder / "picture.png"
    stages = Bundle.open(bundle).model.num_stages
    yield "minimal", draws((*programs.minimal, bundle, CLASS), ppm, picture, lines=0)
    if programs.with_progress:
        yield "with progress", draws((*programs.with_progress, bundle, CLASS), ppm, picture, lines=stages)
    if programs.edit and "encoder" in Bundle.open(bundle).manifest.graphs:
        yield "edit", draws((*programs.edit, bundle, CLASS), ppm, _edited(bundle, picture), lines=0)
    if programs.generate:
        yield "generate", draws((*programs.generate, bundle, *PICTURE), png, picture, lines=1)
        yield "generate, link and pipe", keeps_link_and_pipe((*programs.generate, bundle, *PICTURE), png)
        yield "generate, random", draws_random((*programs.generate, bundle), png, bundle)
        yield "generate, another format", refuses_format((*programs.generate, bundle, *PICTURE), folder / "none.gif")
    if programs.bench:
        yield "bench", tells_speed((*programs.bench, bundle, "--repetitions", 2, "--threads", 1))
    if programs.worker:
        for form in FORMS:
            yield f"worker, {form}", measures((*programs.worker, str(bundle), "--form", form, "--threads", "1"))


def _edited(bundle: Path, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the programs in examples/minimal make of the picture."""
    mask = np.zeros(picture.shape[:2], np.bool_)
    mask[:, mask.shape[1] // 2 :] = True
    [edited] = Generator(bundle, STOCK).edit(picture, mask, [CLASS], seed=SEED + 1).images
    return edited


def _check_telemetry(programs: Programs, bundle: Path, folder: Path) -> Iterator[tuple[str, str | None]]:
    home = folder / f"home-{programs.language}"
    home.mkdir()
    yield "telemetry of minimal", phones_home((*programs.minimal, bundle, CLASS, folder / "quiet.ppm"), home)
    if programs.generate:
        command = (*programs.generate, bundle, *PICTURE, folder / "quiet.png")
        yield "telemetry of generate", phones_home(command, home)
        yield "telemetry of generate, empty variable", phones_home(command, home, {"ORT_DISABLE_TELEMETRY": ""})


def _check_memory(programs: Programs, bundle: Path, folder: Path) -> Iterator[tuple[str, str | None]]:
    if programs.generate:
        images = ("--class", CLASS) * MANY
        command = (*programs.generate, bundle, *images, "--batch", MANY, "--threads", 1, "--out", folder / "none.png")
        yield "out of memory", runs_out_of_memory(command)
        yield "nothing written", "a file was written" if (folder / "none.png").exists() else None


def _check_prompts(
    generate: tuple[str, ...], bundle: Path, of_classes: Path, folder: Path
) -> Iterator[tuple[str, str | None]]:
    [picture] = Generator(bundle, STOCK).generate(**PROMPTED).images
    out = folder / "prompt.png"
    yield "prompt", draws((*generate, bundle, *PROMPT), out, picture, lines=1)
    for what, command, words in (
        ("a class of prompts", (*generate, bundle, *PICTURE), "this bundle makes pictures of prompts: give --prompt"),
        (
            "a prompt of classes",
            (*generate, of_classes, *PROMPT),
            "this bundle makes pictures of classes: give --class",
        ),
        ("another ratio", (*generate, bundle, "--ratio", "9:1", *PROMPT[:2], "--out"), "with ratio 9:1 is not built"),
    ):
        done = _run((*command, folder / "none.png"))
        refused = done.returncode == REFUSED and words in done.stderr and not done.stdout
        yield what, None if refused else f"exit code {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"


def _check_errors(programs: Programs, broken: Path, folder: Path) -> Iterator[tuple[str, str | None]]:
    out = folder / "none.ppm"
    if programs.with_progress:
        yield "with progress", refuses((*programs.with_progress, broken, CLASS, out))
    if programs.generate:
        yield "generate", refuses((*programs.generate, broken, *PICTURE, out))
    if programs.bench:
        yield "bench", refuses((*programs.bench, broken))
    yield "nothing written", "a file was written" if out.exists() else None


def draws(command: Sequence[object], out: Path, picture: NDArray[np.uint8], lines: int) -> str | None:
    """The program writes the picture to the file that is its last argument, and so many lines to stdout."""
    out.unlink(missing_ok=True)
    done = _run((*command, out))
    if done.returncode != 0 or done.stderr:
        return f"exit code {done.returncode}, stderr {done.stderr!r}"
    if done.stdout.count("\n") != lines:
        return f"expected {lines} lines on stdout, found {done.stdout!r}"
    with Image.open(out) as image:
        found = np.asarray(image)
    return None if np.array_equal(found, picture) else "another picture than Python's"


def draws_random(command: Sequence[object], out: Path, bundle: Path) -> str | None:
    """The program draws a seed, tells it, and makes its picture of the null class."""
    seeds = []
    for _ in range(2):
        done = _run((*command, "--class", "null", "--seed", "random", "--out", out))
        told = re.fullmatch(r"seed (\d+)\n", done.stderr)
        if done.returncode != 0 or told is None:
            return f"exit code {done.returncode}, stderr {done.stderr!r}"
        seeds.append(int(told[1]))
        generator = Generator(bundle, STOCK)
        [picture] = generator.generate([generator.bundle.model.num_classes], seed=seeds[-1]).images
        with Image.open(out) as image:
            if not np.array_equal(np.asarray(image), picture):
                return "another picture than Python's of the same seed"
    return None if seeds[0] != seeds[1] and max(seeds) < 2**53 else f"seeds {seeds}"


def refuses_format(command: Sequence[object], out: Path) -> str | None:
    """The program refuses a file name whose format it does not write, in one clear line."""
    done = _run((*command, out))
    one_line = done.stderr.count("\n") == 1 and f"cannot write {out}: pictures are written as .png" in done.stderr
    if done.returncode != REFUSED or done.stdout or not one_line or out.exists():
        return f"exit code {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"
    return None


def keeps_link_and_pipe(command: Sequence[object], picture: Path) -> str | None:
    """The program writes through a link and into a named pipe, and leaves both, and nothing beside them."""
    with tempfile.TemporaryDirectory() as name:
        target, link, pipe = (Path(name) / f"{what}.png" for what in ("target", "link", "pipe"))
        target.write_text("old")
        link.symlink_to(target)
        os.mkfifo(pipe)
        done = _run((*command, link))
        if not link.is_symlink() or target.read_bytes() != picture.read_bytes():
            return f"not written through the link; stderr {done.stderr!r}"
        with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
            done = _run((*command, pipe))
            piped = reader.communicate(timeout=60)[0]
        if not pipe.is_fifo() or piped != picture.read_bytes():
            return f"not written into the pipe; stderr {done.stderr!r}"
        left = sorted(path.name for path in Path(name).iterdir())
        return None if left == ["link.png", "pipe.png", "target.png"] else f"found {left}"


def tells_speed(command: Sequence[object]) -> str | None:
    """The program prints images per second of both forms."""
    done = _run(command)
    if done.returncode != 0 or done.stderr or done.stdout.count("images/s") != len(FORMS):
        return f"exit code {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"
    return None


def measures(command: tuple[str, ...]) -> str | None:
    """The program keeps the protocol of nextscale/measure/contender.py."""
    try:
        with Worker(Contender(command[0], command)) as worker:
            replies = [worker.request(batch, seed=1) for batch in (1, 2)]
            done = worker.load_seconds > 0 and all(reply.seconds * reply.peak_memory_bytes > 0 for reply in replies)
            return None if done else str(replies)
    except NextscaleError as error:
        return str(error)


def refuses(command: Sequence[object]) -> str | None:
    """The program refuses a bundle without a manifest in one clear line."""
    done = _run(command)
    one_line = done.stderr.count("\n") == 1 and "manifest.json: the file is missing" in done.stderr
    if done.returncode != REFUSED or done.stdout or not one_line:
        return f"exit code {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"
    return None


def runs_out_of_memory(command: Sequence[object]) -> str | None:
    """The program has too little memory for ONNX Runtime, and says so in one line."""
    for memory in LITTLE_MEMORY:
        done = _run(("bash", "-c", f'ulimit -S -d {memory >> 10}; exec "$@"', "bash", *command))
        if not done.stdout.startswith(MONO_HAS_NO_MEMORY):
            break
    one_line = done.stderr.count("\n") == 1 and "out of memory: fewer images at a time" in done.stderr
    if done.returncode != REFUSED or done.stdout or not one_line:
        return f"exit code {done.returncode}, stdout {done.stdout!r}, stderr {done.stderr!r}"
    return None


def _run(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path, metavar="SUITE", help="a folder that make_suite wrote")
    parser.add_argument("texts", type=Path, metavar="TEXT_SUITE", help="another, of --family text")
    parser.add_argument("--cpp", type=Path, required=True, metavar="DIR", help="where CMake built examples/cpp")
    parser.add_argument("--csharp", type=Path, required=True, metavar="DIR", help="where the C# programs are")
    options = parser.parse_args()
    passed = failed = 0
    folders = (options.suite, options.texts, options.cpp, options.csharp)
    for what, wrong in check_programs(*(folder.resolve() for folder in folders)):
        passed += wrong is None
        failed += wrong is not None
        if wrong is not None:
            print(f"FAILED {what}: {wrong}", file=sys.stderr)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
