"""Bundles of the demo model in each release of ONNX Runtime that pyproject.toml allows.

    python benchmarks/releases.py    # builds the bundles in WORK, and writes benchmarks/results/releases.md

Each release gets an environment of its own with the wheel of this checkout, as an app would have it. There `nextscale
verify` runs, the certificate says which kernels the integer layers got, images are sampled, and token maps that full
precision sampled here are fed to each bundle (teacher forcing): their distributions are compared with those of the
release before and with full precision's. The fused graphs go the same way, with one build of nextscale-ops in all
releases. Other tokens are no failure, since one that is sampled otherwise changes all later ones; a bundle that is
refused, does not verify or has a layer in float is. Environments and what bundles gave stay in WORK; an interrupted run
goes on from there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from progress import log
from provenance import provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles, find_recipe, with_recipe_bundles

from nextscale.evaluate.teacher_forced import evaluation_labels, kl_divergence
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._manifest import FUSED, OPERATORS, STOCK

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("release_worker.py")
# The last patch of each minor release that pyproject.toml allows.
RELEASES = ("1.23.2", "1.24.4", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.30.0", "1.31.1", "1.32.0")
RECIPES = (FULL_PRECISION, "default", "ours-w8a8", "ours-w4a6")
SEED = 1  # not calibration's


@dataclass(frozen=True)
class Result:
    """A bundle in a release.

    Attributes:
        passed: whether `nextscale verify` does.
        verified: what it says of the stored tokens.
        kernels: how many integer layers each kernel of the graph `stage` has, and `decoder`; of fused graphs, how many
            nodes each operator of nextscale-ops has.
        same_tokens: share of the sampled tokens that the release before sampled; None in the first.
        same_images: images whose sampled tokens are all those of the release before.
        kl_before: KL(release before || this) of the bundle, nats per token.
        kl: KL(full precision with the installed release || this), nats per token.
    """

    passed: bool
    verified: str
    kernels: dict[str, int]
    same_tokens: float | None
    same_images: int | None
    kl_before: float | None
    kl: float


@dataclass(frozen=True)
class Failure:
    """Why a bundle does not pass in a release, in one line."""

    error: str


def passes(result: Result | Failure) -> bool:
    return isinstance(result, Result) and result.passed


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--releases", default=",".join(RELEASES), help="Of ONNX Runtime, in order, separated by commas.")
@click.option("--images", type=click.IntRange(1), default=8)
@with_recipe_bundles("out/releases")
def main(bundles: RecipeBundles, releases: str, images: int) -> None:
    names = [bundles.build(find_recipe(recipe)) for recipe in RECIPES]
    folders = [bundles.work / name for name in names]
    lines = [*provenance(bundles.session.threads), *map(calibrated, folders[1:])]
    found = compare(folders, releases.split(","), bundles.work, images, bundles.session.threads)
    publish("releases", report(found, images, lines))
    sys.exit(not all(passes(result) for results in found.values() for result in results.values()))


def compare(
    bundles: Sequence[Path], releases: Sequence[str], work: Path, images: int, threads: int
) -> dict[str, dict[str, Result | Failure]]:
    """Results by release and bundle's name, that of fused graphs with ", fused".

    Args:
        bundles: of one model; full precision first.
        releases: in order.
        work: where environments and what bundles gave are kept; what is there is not made again.
        images: N, sampled and fed in each.
    """
    maps, expected = work / f"maps-{images}.npz", work / f"expected-{images}.npz"
    if not maps.exists():
        _sample(bundles[0], maps, images, threads)
    _feed(sys.executable, bundles[0], maps, expected, threads)
    wheels = build_wheels(work)
    found = dict[str, dict[str, Result | Failure]]()
    before = dict[str, Path]()  # what the last release that passed gave, by bundle
    for release in releases:
        log(f"onnxruntime {release}")
        try:
            python = environment(release, wheels, work / "environments" / release)
        except click.ClickException as error:
            found[release] = {name: Failure(error.message) for _, _, name in variants(bundles)}
            continue
        found[release] = {}
        for bundle, ops, name in variants(bundles):
            gave = work / "gave" / f"{release}-{bundle.name}-{ops}-{images}.npz"
            gave.parent.mkdir(exist_ok=True)
            try:
                passed, verified = verify(python, bundle, ops, threads)
                kernels = certified(python, bundle) if ops == STOCK else fused_nodes(bundle)
                _feed(python, bundle, maps, gave, threads, ops)
            except click.ClickException as error:
                found[release][name] = Failure(error.message)
                continue
            counts = {f"{role}: {kernel}": n for role in ("stage", "decoder") for kernel, n in kernels[role].items()}
            found[release][name] = _result(passed, verified, counts, gave, before.get(name), expected)
            before[name] = gave
    return found


def variants(bundles: Sequence[Path]) -> list[tuple[Path, str, str]]:
    """The bundles' stock graphs, and their fused ones where they have them: bundle, ops, name."""
    found = []
    for bundle in bundles:
        found.append((bundle, STOCK, bundle.name))
        if any(info.fused for info in Bundle.open(bundle).manifest.graphs.values()):
            found.append((bundle, FUSED, f"{bundle.name}, fused"))
    return found


def certified(python: str, bundle: Path) -> dict[str, dict[str, int]]:
    """Integer layers by graph and kernel, as the release sees them."""
    kernels: dict[str, dict[str, int]] = json.loads(
        run([python, WORKER, "certify", bundle, Path(torch.__file__).parents[1]])
    )
    return kernels


def fused_nodes(bundle: Path) -> dict[str, dict[str, int]]:
    """Nodes of nextscale-ops by graph and operator."""
    found = {}
    for role, info in Bundle.open(bundle).manifest.graphs.items():
        if info.fused:
            model = onnx.load(bundle / info.fused.file, load_external_data=False)
            found[role] = dict(Counter(node.op_type for node in model.graph.node if node.domain == OPERATORS))
    return found


def build_wheels(work: Path) -> list[Path]:
    """The wheels of this checkout: nextscale's, and one of nextscale-ops for all releases."""
    for old in (work / "wheels").glob("*.whl"):
        old.unlink()
    for source in (ROOT, ROOT / "kernels"):
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "wheels", source])
    return sorted((work / "wheels").glob("*.whl"))


def environment(release: str, wheels: Sequence[Path], folder: Path) -> str:
    """The Python of an environment with the wheels and that release, made unless it is there.

    Raises:
        click.ClickException: there is no such release for this Python.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder])
    run([python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", *wheels])
    run([python, "-m", "pip", "install", "--quiet", f"onnxruntime=={release}", *wheels])
    return str(python)


def verify(python: str, bundle: Path, ops: str, threads: int) -> tuple[bool, str]:
    """Whether `nextscale verify` passes, and what it says of the stored tokens or of what failed before.

    Raises:
        click.ClickException: the bundle cannot be opened.
    """
    program = Path(python).with_name("nextscale")
    report = json.loads(run([program, "verify", bundle, "--ops", ops, "--threads", threads, "--json"], allowed=(0, 1)))
    tokens = next(check for check in report["checks"] if check["name"].startswith("tokens") or not check["passed"])
    return report["passed"], str(tokens["detail"]).replace("|", "/")


def run(command: Sequence[object], allowed: Sequence[int] = (0,)) -> str:
    """What a program prints.

    Raises:
        click.ClickException: its exit code is none of the allowed ones; with its last line.
    """
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise click.ClickException(last.replace("|", "/") or f"exit code {done.returncode}")
    return done.stdout


def _sample(bundle: Path, maps: Path, images: int, threads: int) -> None:
    """Token maps that full precision samples with the installed release, for the worker's `feed`."""
    generator = Generator(bundle, SessionOptions(threads=threads))
    labels = evaluation_labels(generator.bundle.model.num_classes, images, SEED)
    np.savez(maps, labels=labels, tokens=generator.generate(labels, seed=SEED, batch_size=1).token_maps, seed=SEED)


def _feed(python: str, bundle: Path, maps: Path, out: Path, threads: int, ops: str = STOCK) -> None:
    if not out.exists():
        part = out.with_name(f"part-{out.name}")
        run([python, WORKER, "feed", bundle, maps, part, threads, ops])
        part.rename(out)


def _result(
    passed: bool, verified: str, kernels: dict[str, int], gave: Path, before: Path | None, expected: Path
) -> Result:
    with np.load(gave) as arrays:
        tokens, logits = arrays["token_maps"], arrays["logits"]
    kl = _divergence(expected, logits)
    if before is None:
        return Result(passed, verified, kernels, None, None, None, kl)
    with np.load(before) as arrays:
        same = tokens == arrays["token_maps"]
    return Result(
        passed, verified, kernels, float(same.mean()), int(same.all(1).sum()), _divergence(before, logits), kl
    )


def _divergence(other: Path, logits: NDArray[np.float32]) -> float:
    """Mean KL(other || logits), nats per token, image by image for memory."""
    with np.load(other) as arrays:
        expected = arrays["logits"]
    return float(np.mean([kl_divergence(p, q).mean() for p, q in zip(expected, logits, strict=True)]))


def calibrated(bundle: Path) -> str:
    """A line on what an integer bundle was calibrated on."""
    manifest = Bundle.open(bundle).manifest
    return f"- {bundle.name}: calibrated on {manifest.recipe['calibration']['images']} images"


def report(found: Mapping[str, Mapping[str, Result | Failure]], images: int, lines: Sequence[str]) -> list[str]:
    """Markdown, with lines on where it comes from."""
    lines = [
        "# Releases of ONNX Runtime on the same bundles",
        "",
        *lines,
        f"- {images} images of the demo model, one at a time; each release in an environment of its own",
        "- verify: the stored tokens, which the installed release made, or how many of them are the likeliest given "
        "those before",
        "- tokens, images: sampled as in the release above, in shares of all tokens and in whole images",
        "- KL to the release above, and to full precision with the installed release: nats per token, on token maps "
        "that full precision sampled",
        "- integer layers: all layers that the recipe makes integer have an integer kernel; the stage graph's and the "
        "decoder's, by kernel; of fused graphs, all nodes of nextscale-ops, of which there is one build",
        *(
            ["- stock products of u8 and s8 saturate on this CPU, in all releases alike"]
            if describe_machine().saturates
            else []
        ),
        "",
    ]
    names = dict.fromkeys(name for results in found.values() for name in results)
    for name in names:
        lines += [
            f"## {name}",
            "",
            "| onnxruntime | verify | tokens | images | KL to the release above | to full precision | integer layers |",
            "|---|---|---|---|---|---|---|",
            *(f"| {release} | {_cells(results[name], images)} |" for release, results in found.items()),
            "",
        ]
    return lines[:-1]


def _cells(result: Result | Failure, images: int) -> str:
    if isinstance(result, Failure):
        return f"FAILED: {result.error} | | | | |"
    layers = ", ".join(f"{count} {kernel}" for kernel, count in result.kernels.items()) or "none"
    verified = result.verified.partition("given the stored tokens before it, ")[2].partition(":")[0] or result.verified
    verified = verified if result.passed else f"FAILED: {verified}"
    if result.same_tokens is None or result.kl_before is None:
        return f"{verified} | | | | {result.kl:.4f} | {layers}"
    return (
        f"{verified} | {result.same_tokens:.1%} | {result.same_images} of {images} "
        f"| {result.kl_before:.2g} | {result.kl:.4f} | {layers}"
    )


if __name__ == "__main__":
    main()
