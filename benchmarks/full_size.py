"""A release-sized model with random weights, float32 against integer recipes: build, speed, memory.

Builds the bundles with the command line (time and peak memory of each build), then measures them interleaved.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from provenance import RESULTS, provenance, publish

from nextscale.measure.bench import BenchReport, Measurement, bench
from nextscale.measure.kernel_rates import kernel_rates
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

RECIPES = ("fp32", "static-w8a8", "default")


@dataclass(frozen=True)
class Build:
    """One build: seconds and peak memory of its process."""

    seconds: float
    peak_bytes: int


def build(model: str, recipe: str, out: Path, threads: int) -> Build:
    """Run `nextscale build` in a process of its own."""
    program = str(Path(sys.executable).with_name("nextscale"))
    arguments = ["build", "--preset", model, "--random-weights", "--recipe", recipe, "--out", str(out)]
    begin = time.perf_counter()
    pid = os.posix_spawn(program, [program, *arguments, "--threads", str(threads)], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"nextscale {' '.join(arguments)} failed")
    return Build(time.perf_counter() - begin, usage.ru_maxrss * 1024)


def built(model: str, recipe: str, folder: Path, threads: int) -> Build:
    """Build the bundle, or take the one of an earlier run and its figures."""
    record = folder / f"{recipe}.build.json"
    if not record.exists():
        shutil.rmtree(folder / recipe, ignore_errors=True)
        figures = build(model, recipe, folder / recipe, threads)
        record.write_text(json.dumps(asdict(figures)), encoding="utf-8")
    return Build(**json.loads(record.read_text(encoding="utf-8")))


@click.command()
@click.option("--model", default="var-d16", show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--repetitions", type=int, default=8, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/full_size"), show_default=True)
def main(model: str, threads: int, repetitions: int, work: Path) -> None:
    """Build what is missing, measure, print and keep the results."""
    folder = work / model
    builds = {recipe: built(model, recipe, folder, threads) for recipe in RECIPES}
    options = SessionOptions(threads=threads)
    before = kernel_rates(options)
    report = bench(
        [Bundle.open(folder / recipe) for recipe in RECIPES],
        options=options,
        repetitions=repetitions,
        log=lambda line: print(line, file=sys.stderr),
    )
    rates = {name: rate / 1e9 for name, rate in asdict(before.mean_with(kernel_rates(options))).items()}
    publish(f"full_size_{model}", _report(model, threads, builds, rates, report))
    document = json.dumps({"kernel_gflops": rates, **report.to_json()}, indent=1)
    (RESULTS / f"full_size_{model}.json").write_text(document + "\n", encoding="utf-8")


def _report(
    model: str, threads: int, builds: dict[str, Build], rates: dict[str, float], report: BenchReport
) -> list[str]:
    cases: dict[tuple[str, str], Measurement] = {(m.recipe, m.form): m for m in report.measurements}
    lines = [
        f"# {model}, random weights: float32 against integer recipes",
        "",
        *provenance(threads),
        f"- kernel rates, mean of before and after: float32 {rates['float32']:.0f}, int8 {rates['int8']:.0f} GFLOP/s",
        f"- {report.settings['repetitions']} interleaved repetitions, batch 1, guidance on; means with 95% intervals",
        "",
        "| bundle | form | images/s | s per image | speedup | load, s | peak memory, MB | size, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, form), m in cases.items():
        half = (m.image_seconds.high - m.image_seconds.low) / 2
        footprint = m.footprint
        assert footprint is not None
        lines.append(
            f"| {recipe} | {form} | {m.images_per_second.mean:.3f} | {m.image_seconds.mean:.3f} ± {half:.3f} | "
            f"{m.speedup.mean:.2f} [{m.speedup.low:.2f}, {m.speedup.high:.2f}] | {footprint.load_seconds:.2f} | "
            f"{footprint.peak_bytes / 1e6:.0f} | {m.size_bytes / 1e6:.0f} |"
        )
    lines += ["", "| bundle | stages, ms | decoder, ms |", "|---|---|---|"]
    for recipe in RECIPES:
        m = cases[recipe, "streaming"]
        assert m.decoder_seconds is not None
        stages = " ".join(f"{stage.mean * 1e3:.0f}" for stage in m.stage_seconds)
        lines.append(f"| {recipe} | {stages} | {m.decoder_seconds.mean * 1e3:.0f} |")
    lines += ["", "| build | seconds | peak memory, GB |", "|---|---|---|"]
    lines += [f"| {p} | {built.seconds:.0f} | {built.peak_bytes / 1e9:.2f} |" for p, built in builds.items()]
    target = 0.36 * rates["float32"] / 450
    lines += [
        "",
        f"- float32 streaming {cases['fp32', 'streaming'].images_per_second.mean:.3f} images/s; 0.36 at 450 GFLOP/s, "
        f"scaled to this run's float32 rate: {target:.3f}",
    ]
    for recipe in RECIPES[1:]:
        streaming, single = (cases[recipe, form] for form in ("streaming", "generate"))
        ratio = single.image_seconds.mean / streaming.image_seconds.mean
        lines.append(
            f"- {recipe} over float32, streaming: {streaming.speedup.mean:.2f}x; its generate.onnx takes {ratio:.3f} "
            "of streaming's time"
        )
    return lines


if __name__ == "__main__":
    main()
