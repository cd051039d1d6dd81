"""Recipes against full precision on the demo model: Table 1's settings, and any others.

Each bundle is built once and kept in WORK, each result too, so an interrupted run goes on. Reconstructed recipes take
their weights from ROUNDINGS/{recipe}.safetensors (`nextscale reconstruct`); one without such a file is left out, and
the report says so.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import onnxruntime
from provenance import RESULTS, provenance, publish

from nextscale.calib_data.rounding import Rounding
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.evaluate.teacher_forced import as_json, teacher_forced
from nextscale.export.build import build_bundle
from nextscale.export.plan import BuildOptions
from nextscale.export.sources import Source, demo_source
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.runtime.machine import describe_machine
from nextscale.runtime.next_scale_loop import Generator
from nextscale.runtime.session import SessionOptions

METHODS = ("rtn", "brecq", "litevar", "ours", "ours-litevar")
BITS = ("w8a8", "w6a6", "w4a8", "w4a6", "w4a4")
TABLE_1 = [f"{method}-{bits}" for bits in BITS for method in METHODS]
TOGETHER = 5  # bundles that share the reference's work


def log(step: str, done: int = 0, total: int = 0) -> None:
    """Progress on stderr."""
    if not total or done % 16 == 0:
        print(step, f"{done}/{total}" if total else "", file=sys.stderr, flush=True)


@click.command()
@click.option("--recipes", default=",".join(TABLE_1), help="Names or files, separated by commas; Table 1 by default.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/recipes"), show_default=True)
@click.option(
    "--roundings",
    type=click.Path(path_type=Path),
    default=Path(__file__).parent / "roundings",
    help="Reconstructed weights.",
)
@click.option("--token-maps", type=click.Path(path_type=Path), help="`nextscale calibrate`'s folder, no matching.")
@click.option("--matched-maps", type=click.Path(path_type=Path), help="The same with matching.")
@click.option("--calibration-images", type=int, help="At most this many, instead of each recipe's number.")
@click.option("--images", type=int, default=256, show_default=True)
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--name", default="recipes", show_default=True, help="Of the result files.")
def main(
    recipes: str,
    work: Path,
    roundings: Path,
    token_maps: Path | None,
    matched_maps: Path | None,
    calibration_images: int | None,
    images: int,
    cfg_scale: float,
    threads: int,
    name: str,
) -> None:
    """Build, compare, print and keep the results."""
    work.mkdir(parents=True, exist_ok=True)
    session, source = SessionOptions(threads=threads), demo_source("demo")
    maps = {
        matched: first_images(TokenMaps.load(folder, source.model_info()), calibration_images)
        for matched, folder in ((False, token_maps), (True, matched_maps))
        if folder is not None
    }
    built, missing = [], []
    for recipe in [load_recipe("fp32"), *map(load_recipe, recipes.split(","))]:
        if calibration_images is not None:
            count = min(calibration_images, recipe.calibration.images)
            recipe = replace(recipe, calibration=replace(recipe.calibration, images=count))
        rounding = None
        measured = result_path(work, recipe.name, images, cfg_scale).exists()
        if recipe.weights.rounding == "reconstructed" and not measured:
            path = roundings / f"{recipe.name}.safetensors"
            if not path.exists():
                missing.append(recipe.name)
                continue
            rounding = Rounding.load(path)
        if not measured and not (work / recipe.name).exists():
            log(f"building {recipe.name}")
            found = maps.get(recipe.calibration.matching != "none")
            options = BuildOptions(recipe, session=session, token_maps=found, rounding=rounding)
            build_bundle(replace_name(source, recipe), work / recipe.name, options, log)
        built.append(recipe)
    pending = [r.name for r in built[1:] if not result_path(work, r.name, images, cfg_scale).exists()]
    for first in range(0, len(pending), TOGETHER):
        names = pending[first : first + TOGETHER]
        log(f"comparing {', '.join(names)}")
        agreements = teacher_forced(
            Generator(work / "fp32", session),
            {one: Generator(work / one, session) for one in names},
            images=images,
            cfg_scale=cfg_scale,
            on_images=lambda done: log("images", done, images),
        )
        for one, values in as_json(agreements).items():
            size = sum(path.stat().st_size for path in (work / one).iterdir()) / 1e6
            values |= {"megabytes": size, "machine": describe_machine().cpu, "onnxruntime": onnxruntime.__version__}
            result_path(work, one, images, cfg_scale).write_text(json.dumps(values), encoding="utf-8")
    results = {r.name: json.loads(result_path(work, r.name, images, cfg_scale).read_text()) for r in built[1:]}
    machines = sorted({f"{found['machine']} with onnxruntime {found['onnxruntime']}" for found in results.values()})
    lines = [
        "# Recipes on the demo model, teacher-forced against full precision",
        "",
        *provenance(threads),
        f"- {images} images with labels over all classes, cfg_scale {cfg_scale:g}; the bundles' integer graphs in ONNX "
        "Runtime",
        "- KL of the guided distributions, nats a token, mean ± standard error over images",
        f"- each result measured on {', '.join(machines)}; the machine above printed them",
        *([f"- left out, no reconstructed weights: {', '.join(missing)}"] if missing else []),
        "",
        "| recipe | W/A | KL | top-1 | MB | KL by stage |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in built[1:]:
        found = results[recipe.name]
        stages = " ".join(f"{kl:.3f}" for kl in found["stage_kl"])
        lines.append(
            f"| {recipe.name} | {recipe.weights.bits}/{recipe.activations.bits} | {found['kl']:.4f} ± "
            f"{found['kl_stderr']:.4f} | {found['top1']:.1%} | {found['megabytes']:.1f} | {stages} |"
        )
    publish(name, lines)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def first_images(maps: TokenMaps, count: int | None) -> TokenMaps:
    """The first `count` maps, or all."""
    return replace(maps, class_labels=maps.class_labels[:count], token_maps=maps.token_maps[:count])


def replace_name(source: Source, recipe: Recipe) -> Source:
    return replace(source, name=f"demo-{recipe.name}")


def result_path(work: Path, recipe: str, images: int, cfg_scale: float) -> Path:
    return work / f"{recipe}.{images}-{cfg_scale:g}.json"


if __name__ == "__main__":
    main()
