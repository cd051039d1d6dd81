"""Recipes of the paper's tables and figures that a user would not build with: ablations and budgets."""

from __future__ import annotations

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
