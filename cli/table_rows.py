"""What the paper's tables make of --rows: full precision first, each row once, and recipes with few enough images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import click

from nextscale.cli.progress import Steps
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, RecipeBundles, UnbuiltBundle

Row = TypeVar("Row", Recipe, RecipeBundle, RecipeBundle | Recipe)


def recipe_rows(text: str, calibration_images: int | None) -> list[Recipe]:
    """The recipes that --rows names, full precision first, with at most so many images to calibrate with."""
    names = [name.strip() for name in text.split(",")]
    return reference_first([with_fewer_images(paper_recipe(name), calibration_images) for name in names], text)


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


def built_rows(
    wanted: Sequence[RecipeBundle | Recipe], bundles: RecipeBundles, steps: Steps
) -> tuple[list[RecipeBundle], list[str]]:
    """The rows' bundles, built where they are not there, and why others cannot be."""
    found, left_out = list[RecipeBundle](), list[str]()
    for item in wanted:
        bundle = item if isinstance(item, RecipeBundle) else bundles.built_or_why(item, steps)
        if isinstance(bundle, str):
            left_out.append(bundle)
        else:
            found.append(bundle)
    return found, left_out


def planned_rows(
    wanted: Sequence[RecipeBundle | Recipe], bundles: RecipeBundles
) -> tuple[list[RecipeBundle | UnbuiltBundle], list[str]]:
    """As `built_rows`, but nothing is built: what is known of the bundles that are not there."""
    found, left_out = list[RecipeBundle | UnbuiltBundle](), list[str]()
    for item in wanted:
        why = None if isinstance(item, RecipeBundle) else bundles.missing(item)
        if why is not None:
            left_out.append(why)
        else:
            found.append(item if isinstance(item, RecipeBundle) else bundles.planned(item))
    return found, left_out
