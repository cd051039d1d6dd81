"""Collect the demo model's agreement by recipe into the package, for `nextscale table-c`.

Reads WORK/{recipe}.{images}-{cfg_scale}.json (`recipe_bundles.py` writes them) into paper/recipe_agreement.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

OUT = Path(__file__).parents[1] / "paper" / "recipe_agreement.json"
RECIPES = "brecq-w8a8,litevar-w8a8,ours-w8a8,ours-litevar-w8a8,default"
FIGURES = ("kl", "kl_stderr", "top1")


@click.command()
@click.option("--recipes", default=RECIPES, show_default=True, help="Names, separated by commas.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/recipes"), show_default=True)
@click.option("--images", type=int, default=256, show_default=True)
@click.option("--cfg-scale", type=float, default=4.0, show_default=True)
def main(recipes: str, work: Path, images: int, cfg_scale: float) -> None:
    """Write the file."""
    results = {
        name: json.loads((work / f"{name}.{images}-{cfg_scale:g}.json").read_text(encoding="utf-8"))
        for name in recipes.split(",")
    }
    machines = sorted({found["machine"] for found in results.values()})
    document = {
        "measured": f"demo model, {images} teacher-forced images at cfg_scale {cfg_scale:g}, fully calibrated bundles "
        f"with learned rounding where the recipe has it ({'; '.join(machines)}; benchmarks/recipe_bundles.py)",
        "recipes": {name: {key: found[key] for key in FIGURES} for name, found in results.items()},
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
