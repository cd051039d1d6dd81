"""Recipes against full precision on the demo model: Table 1's settings, and any others.

Each bundle is built once and kept in WORK, each result too, so an interrupted run goes on. Reconstructed recipes take
their weights from ROUNDINGS/{recipe}.safetensors (benchmarks/learned_roundings.py brings them); one without such a
file is left out, and the report says so.
"""

from __future__ import annotations

import json
from dataclasses import replace

import click
from provenance import RESULTS, provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles, with_recipe_bundles

from nextscale.graph_passes.recipe import Recipe, load_recipe

METHODS = ("rtn", "brecq", "litevar", "ours", "ours-litevar")
BITS = ("w8a8", "w6a6", "w4a8", "w4a6", "w4a4")
TABLE_1 = [f"{method}-{bits}" for bits in BITS for method in METHODS]


@click.command()
@click.option("--recipes", default=",".join(TABLE_1), help="Names or files, separated by commas; Table 1 by default.")
@with_recipe_bundles("out/recipes")
@click.option("--calibration-images", type=int, help="At most this many, instead of each recipe's number.")
@click.option("--images", type=int, default=256, show_default=True)
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
@click.option("--name", default="recipes", show_default=True, help="Of the result files.")
def main(
    bundles: RecipeBundles,
    recipes: str,
    calibration_images: int | None,
    images: int,
    cfg_scale: float,
    name: str,
) -> None:
    """Build, compare, print and keep the results."""
    wanted = [limited(load_recipe(one), calibration_images) for one in recipes.split(",")]
    done = {recipe.name for recipe in wanted if bundles.measured(recipe.name, images, cfg_scale)}
    compared = [recipe for recipe in wanted if recipe.name in done or bundles.can_build(recipe)]
    missing = [recipe.name for recipe in wanted if recipe not in compared]
    pending = [recipe for recipe in compared if recipe.name not in done]
    for recipe in [load_recipe(FULL_PRECISION), *pending] if pending else []:
        bundles.build(recipe)
    results = bundles.agreements([recipe.name for recipe in compared], images, cfg_scale)
    machines = sorted({f"{found['machine']} with onnxruntime {found['onnxruntime']}" for found in results.values()})
    lines = [
        "# Recipes on the demo model, teacher-forced against full precision",
        "",
        *provenance(bundles.session.threads),
        f"- {images} images with labels over all classes, cfg_scale {cfg_scale:g}; the bundles' integer graphs in ONNX "
        "Runtime",
        "- KL of the guided distributions, nats per token, mean ± standard error over images",
        f"- each result measured on {', '.join(machines)}; the machine above printed them",
        *([f"- left out, no reconstructed weights: {', '.join(missing)}"] if missing else []),
        "",
        "| recipe | W/A | KL | top-1 | MB | KL by stage |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in compared:
        found = results[recipe.name]
        stages = " ".join(f"{kl:.3f}" for kl in found["stage_kl"])
        lines.append(
            f"| {recipe.name} | {recipe.weights.bits}/{recipe.activations.bits} | {found['kl']:.4f} ± "
            f"{found['kl_stderr']:.4f} | {found['top1']:.1%} | {found['megabytes']:.1f} | {stages} |"
        )
    publish(name, lines)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def limited(recipe: Recipe, images: int | None) -> Recipe:
    """The recipe with at most so many calibration images."""
    if images is None:
        return recipe
    count = min(images, recipe.calibration.images)
    return replace(recipe, calibration=replace(recipe.calibration, images=count))


if __name__ == "__main__":
    main()
