"""W8A8 recipes on the demo model: KL against speed, and the front of those that no other beats in both.

Bundles and KL are made once and kept in WORK (`recipe_bundles`); speed is measured anew, all bundles in one interleaved
run. A reconstructed recipe without its file in ROUNDINGS is left out, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
from learned_roundings import ROUNDINGS
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from provenance import RESULTS, commit, provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles, log

from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.bench import time_batch
from nextscale.measure.statistics import Interval, ratio_interval
from nextscale.report.plots import Point, pareto_front
from nextscale.runtime.machine import describe_machine, versions
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions

HERE = Path(__file__).parent
FOLDERS = (HERE / "front", HERE / "ablations")  # of recipes that do not come with nextscale
RANGES = ("tensor", "static-w8a8", "default", "image", "token")
CHOICES = ("stage-unequalized", "pair-unequalized", "pair-max", "pair-integer-embed", "pair-float-fc2", "default-w8a8")
ATTENTION = ("pair-log2", "pair-row", "pair-uniform")
PAPER = ("rtn-w8a8", "brecq-w8a8", "litevar-w8a8", "ours-w8a8", "ours-litevar-w8a8")
HIGHLIGHTED = "default"
NAME = "w8a8_front"


@dataclass(frozen=True)
class Speed:
    """Of one bundle.

    Attributes:
        speedup: over full precision, from runs of the same round.
        images_per_second: the mean.
        samples: seconds of each round's batch.
    """

    speedup: Interval
    images_per_second: float
    samples: list[float]


def find_recipe(name: str) -> Recipe:
    """A recipe by name, from this folder's or those that come with nextscale, or from a file."""
    here = [folder / f"{name}.toml" for folder in FOLDERS]
    return load_recipe(next((str(path) for path in here if path.exists()), name))


def measure_speed(generators: Mapping[str, Generator], rounds: int, batch: int) -> dict[str, Speed]:
    """Time every bundle once a round, each round beginning with another bundle; a round of warm-up goes before."""
    names = list(generators)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        log(f"warming up {name}")
        time_batch(generators[name], "generate", batch, seed=0)
    for done in range(rounds):
        log(f"speed: round {done + 1} of {rounds}")
        first = done % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(time_batch(generators[name], "generate", batch, seed=done).total)
    return {
        name: Speed(ratio_interval(seconds[FULL_PRECISION], found), batch / float(np.mean(found)), found)
        for name, found in seconds.items()
    }


@click.command()
@click.option("--recipes", default=",".join(RANGES + CHOICES + ATTENTION + PAPER), help="Names, separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/front"), show_default=True)
@click.option("--roundings", type=click.Path(path_type=Path), default=ROUNDINGS, help="Reconstructed weights.")
@click.option("--token-maps", type=click.Path(path_type=Path), help="`nextscale calibrate`'s folder, no matching.")
@click.option("--matched-maps", type=click.Path(path_type=Path), help="The same with matching.")
@click.option("--images", type=click.IntRange(2), default=256, show_default=True, help="Of the KL.")
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=10, show_default=True, help="Of the speed.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images a round and bundle.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(
    recipes: str,
    work: Path,
    roundings: Path,
    token_maps: Path | None,
    matched_maps: Path | None,
    images: int,
    cfg_scale: float,
    rounds: int,
    batch: int,
    threads: int,
) -> None:
    """Build, compare, time, print and keep the results."""
    work.mkdir(parents=True, exist_ok=True)
    bundles = RecipeBundles(work, SessionOptions(threads=threads), roundings, token_maps, matched_maps)
    wanted = {recipe.name: recipe for recipe in map(find_recipe, recipes.split(","))}
    variants = {name: recipe for name, recipe in wanted.items() if bundles.can_build(recipe)}
    for recipe in (load_recipe(FULL_PRECISION), *variants.values()):
        bundles.build(recipe)
    agreements = bundles.agreements(list(variants), images, cfg_scale)
    speeds = measure_speed({name: bundles.open(name) for name in (FULL_PRECISION, *variants)}, rounds, batch)
    points = [_point(name, speeds[name].speedup, agreements[name]) for name in variants]
    left_out = [name for name in wanted if name not in variants]
    machines = ", ".join(sorted({found["machine"] for found in agreements.values()}))
    lines = [
        "# W8A8 on the demo model: KL against speed",
        "",
        *provenance(threads),
        f"- KL: {images} images with labels over all classes, teacher-forced at cfg_scale {cfg_scale:g}, nats a token, "
        f"mean ± standard error over images; on {machines}",
        f"- speed: {rounds} interleaved rounds, {batch} images at a time, generate.onnx; the ratio to full precision "
        "is of the same round: geometric mean and 95% interval",
        "- front: no other recipe is both faster and nearer to full precision",
        *([f"- left out, no reconstructed weights: {', '.join(left_out)}"] if left_out else []),
        "",
        *_table(variants, agreements, speeds, [point.label for point in pareto_front(points)]),
        "",
        f"![KL against speed]({NAME}.png)",
    ]
    publish(NAME, lines)
    document = {
        "commit": commit(),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "settings": {"threads": threads, "cfg_scale": cfg_scale, "rounds": rounds, "batch": batch},
        FULL_PRECISION: asdict(speeds[FULL_PRECISION]),
        "recipes": {n: {"recipe": r.as_dict(), **agreements[n], **asdict(speeds[n])} for n, r in variants.items()},
        "left_out": left_out,
    }
    (RESULTS / f"{NAME}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (RESULTS / f"{NAME}.png").open("wb") as file:
        draw(file, points)


def _point(name: str, speedup: Interval, agreement: Mapping[str, Any]) -> Point:
    color = "tab:red" if name == HIGHLIGHTED else "tab:blue"
    return Point(name, color, speedup, agreement["kl"], agreement["kl_stderr"], firm=True)


def _table(
    variants: Mapping[str, Recipe],
    agreements: Mapping[str, Mapping[str, Any]],
    speeds: Mapping[str, Speed],
    front: Sequence[str],
) -> list[str]:
    lines = [
        "| recipe | | images/s over full precision | images/s | KL | top-1 | MB | front |",
        "|---" * 8 + "|",
        f"| {FULL_PRECISION} | Full precision | 1 | {speeds[FULL_PRECISION].images_per_second:.2f} | 0 | | | |",
    ]
    for name, recipe in variants.items():
        speed, found = speeds[name], agreements[name]
        lines.append(
            f"| {name} | {recipe.description} | {speed.speedup.mean:.2f} [{speed.speedup.low:.2f}, "
            f"{speed.speedup.high:.2f}] | {speed.images_per_second:.2f} | {found['kl']:.4f} ± {found['kl_stderr']:.4f} "
            f"| {found['top1']:.1%} | {found['megabytes']:.1f} | {'yes' if name in front else ''} |"
        )
    return lines


def draw(file: BinaryIO, points: Sequence[Point]) -> None:
    """Write a PNG: better is to the lower right; labels stand in a column beside the plot, in the order of the KL."""
    figure = Figure(figsize=(8, 0.24 * len(points) + 2.5))
    axes = figure.subplots()
    front = pareto_front(points)
    axes.plot([p.speed.mean for p in front], [p.kl for p in front], color="black", linewidth=1, label="front", zorder=1)
    axes.axvline(1, color="gray", linewidth=1, linestyle="--", label="full precision")
    ordered = sorted(points, key=lambda point: point.kl)
    for point, height in zip(ordered, np.linspace(0, 1, len(points)), strict=True):
        beside = [[point.speed.mean - point.speed.low], [point.speed.high - point.speed.mean]]
        over = 3 + (point.label == HIGHLIGHTED)
        axes.errorbar(point.speed.mean, point.kl, point.kl_stderr, beside, fmt="o", color=point.color, zorder=over)
        axes.annotate(
            point.label,
            (point.speed.mean, point.kl),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            color=point.color,
            arrowprops={"arrowstyle": "-", "color": "lightgray", "relpos": (0, 0.5)},
        )
    axes.set(yscale="log", xlabel="images/s over full precision, 95% interval", ylabel="KL, nats a token")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
