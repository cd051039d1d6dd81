"""What the paper's tables make of --rows: full precision first, each row once, and recipes with few enough images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import click

from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle

Row = TypeVar("Row", Recipe, RecipeBundle, RecipeBundle | Recipe)


def limited_recipe(name: str, images: int | None) -> Recipe:
    """The recipe of that name, with at most so many images to calibrate with."""
    recipe = load_recipe(name)
    count = recipe.calibration.images if images is None else min(images, recipe.calibration.images)
    return replace(recipe, calibration=replace(recipe.calibration, images=count))


def reference_first(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows, full precision first.

    Args:
        rows: what --rows names.
        text: --rows as it was given.
    Raises:
        click.BadParameter: full precision is missing, or a recipe is there twice.
    """
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise click.BadParameter(f"{text!r} has a recipe twice", param_hint="--rows")
    if FULL_PRECISION not in names:
        raise click.BadParameter(f"{text!r} has no full precision (fp32), the reference", param_hint="--rows")
    return sorted(rows, key=lambda row: row.name != FULL_PRECISION)
