"""What the paper's tables make of --rows: full precision first, each row once, and recipes with few enough images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import click

from nextscale.cli.progress import Steps
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, RecipeBundles
from nextscale.runtime._errors import NextscaleError, OutputError

Row = TypeVar("Row", Recipe, RecipeBundle, RecipeBundle | Recipe)


def limited_recipe(name: str, images: int | None) -> Recipe:
    """The recipe of that name, with at most so many images to calibrate with."""
    return with_fewer_images(load_recipe(name), images)


def with_fewer_images(recipe: Recipe, images: int | None) -> Recipe:
    """The recipe with at most so many images to calibrate with; None: its own number."""
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


def built_rows(wanted: Sequence[Recipe], bundles: RecipeBundles, steps: Steps) -> tuple[list[RecipeBundle], list[str]]:
    """The bundles, built where they are not there; and lines on rows that cannot be built."""
    found, left_out = list[RecipeBundle](), list[str]()
    for recipe in wanted:
        there = bundles.built(recipe)
        missing = None if there is not None else bundles.missing(recipe)
        if missing is not None:
            left_out.append(missing)
            continue
        try:
            found.append(there or bundles.build(recipe, steps))
        except OutputError:
            raise
        except NextscaleError as error:  # such as a budget that is too small for the model
            left_out.append(f"{recipe.name}: {error}")
    return found, left_out
