"""Recipes of the paper's tables and figures; ablations and budgets, which a user would not build with, lie here."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files

from nextscale.graph_passes.recipe import Recipe, load_recipe


def paper_recipe(name: str) -> Recipe:
    """A recipe by name, of this room's or of those that come with nextscale, or from a TOML file.

    Raises:
        NextscaleError: see `load_recipe`.
    """
    own = files("nextscale.paper") / "recipes" / f"{name}.toml"
    if not own.is_file():
        return load_recipe(name)
    with as_file(own) as path:
        return load_recipe(str(path))


def with_fewer_images(recipe: Recipe, images: int | None) -> Recipe:
    """The recipe with at most so many images to calibrate with; None: its own number."""
    count = recipe.calibration.images if images is None else min(images, recipe.calibration.images)
    return replace(recipe, calibration=replace(recipe.calibration, images=count))
