"""W8A8 recipes on the demo model: KL against speed, and the front of those that no other beats in both.

Bundles and KL are made once and kept in WORK (`recipe_bundles`); speed is measured anew, all bundles in one interleaved
run. A reconstructed recipe without its file in ROUNDINGS is left out, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import click
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from progress import log
from provenance import RESULTS, circumstances, provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles, find_recipe, with_recipe_bundles

from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contest import Contest
from nextscale.measure.interleaved import ORDER
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval
from nextscale.report._plots import Point, pareto_front
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

RANGES = ("tensor", "static-w8a8", "default", "image", "token")
CHOICES = ("stage-unequalized", "pair-unequalized", "pair-max", "pair-integer-embed", "pair-float-fc2", "default-w8a8")
ATTENTION = ("pair-log2", "pair-row", "pair-uniform")
PAPER = ("rtn-w8a8", "brecq-w8a8", "litevar-w8a8", "ours-w8a8", "ours-litevar-w8a8")
HIGHLIGHTED = "default"
NAME = "w8a8_front"


def measure_speeds(
    bundles: Mapping[str, Bundle], options: SessionOptions, repetitions: int, batch: int
) -> dict[str, Speed]:
    """Of generate.onnx of each bundle, all in turns."""
    contenders = [bundle_contender(name, bundle, "generate", options) for name, bundle in bundles.items()]
    with Contest(contenders, log=log) as contest:
        speeds = contest.speeds(batch, repetitions=repetitions)
    return {speed.name: speed for speed in speeds}


@click.command()
@click.option("--recipes", default=",".join(RANGES + CHOICES + ATTENTION + PAPER), help="Names, separated by commas.")
@with_recipe_bundles("out/front")
@click.option("--images", type=click.IntRange(2), default=256, show_default=True, help="Of the KL.")
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=10, show_default=True, help="Of the speed.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images a round and bundle.")
def main(
    bundles: RecipeBundles,
    recipes: str,
    images: int,
    cfg_scale: float,
    rounds: int,
    batch: int,
) -> None:
    """Build, compare, time, print and keep the results."""
    wanted = {recipe.name: recipe for recipe in map(find_recipe, recipes.split(","))}
    variants = {name: recipe for name, recipe in wanted.items() if bundles.can_build(recipe)}
    built = [bundles.build(recipe) for recipe in (load_recipe(FULL_PRECISION), *variants.values())]
    agreements = bundles.agreements(list(variants), images, cfg_scale)
    speeds = measure_speeds({name: Bundle.open(bundles.work / name) for name in built}, bundles.session, rounds, batch)
    ratios = {name: speed.ratio_to(speeds[FULL_PRECISION]) for name, speed in speeds.items()}
    points = [_point(name, ratios[name], agreements[name]) for name in variants]
    left_out = [name for name in wanted if name not in variants]
    machines = ", ".join(sorted({found["machine"] for found in agreements.values()}))
    lines = [
        "# W8A8 on the demo model: KL against speed",
        "",
        *provenance(bundles.session.threads),
        f"- KL: {images} images with labels over all classes, teacher-forced at cfg_scale {cfg_scale:g}, nats per "
        f"token, mean ± standard error over images; on {machines}",
        f"- speed: {rounds} rounds, {ORDER}, {batch} images at a time, generate.onnx in a process of its own; the "
        "ratio to full precision is of the same round: geometric mean and 95% interval",
        "- front: no other recipe is both faster and nearer to full precision",
        *([f"- left out, no reconstructed weights: {', '.join(left_out)}"] if left_out else []),
        "",
        *_table(variants, agreements, speeds, ratios, [point.label for point in pareto_front(points)]),
        "",
        f"![KL against speed]({NAME}.png)",
    ]
    publish(NAME, lines)
    figures = {
        name: {
            "speedup": asdict(ratios[name]),
            "images_per_second": speed.images_per_second.mean,
            "samples": speed.samples,
        }
        for name, speed in speeds.items()
    }
    document = {
        **circumstances({"threads": bundles.session.threads, "cfg_scale": cfg_scale, "rounds": rounds, "batch": batch}),
        FULL_PRECISION: figures[FULL_PRECISION],
        "recipes": {n: {"recipe": r.as_dict(), **agreements[n], **figures[n]} for n, r in variants.items()},
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
    ratios: Mapping[str, Interval],
    front: Sequence[str],
) -> list[str]:
    lines = [
        "| recipe | | images/s over full precision | images/s | KL | top-1 | MB | front |",
        "|---" * 8 + "|",
        f"| {FULL_PRECISION} | Full precision | 1 | {speeds[FULL_PRECISION].images_per_second.mean:.2f} | 0 | | | |",
    ]
    for name, recipe in variants.items():
        ratio, found = ratios[name], agreements[name]
        lines.append(
            f"| {name} | {recipe.description} | {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | "
            f"{speeds[name].images_per_second.mean:.2f} | {found['kl']:.4f} ± {found['kl_stderr']:.4f} | "
            f"{found['top1']:.1%} | {found['megabytes']:.1f} | {'yes' if name in front else ''} |"
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
    axes.set(yscale="log", xlabel="images/s over full precision, 95% interval", ylabel="KL, nats per token")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
