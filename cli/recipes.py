"""`nextscale recipes`: the recipes that come with nextscale, or one of them as TOML."""

import click
from rich.console import Console
from rich.table import Table

from nextscale.graph_passes.recipe import RECIPES, load_recipe, recipe_names
from nextscale.runtime._errors import NextscaleError


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes for `nextscale build --recipe`, or print the file of the recipe NAME to start your own from."""
    if name is not None:
        if name not in recipe_names():
            raise NextscaleError(f'no recipe is named "{name}"; expected one of {", ".join(recipe_names())}')
        click.echo((RECIPES / f"{name}.toml").read_text(encoding="utf-8"), nl=False)
        return
    table = Table("recipe", "what it is", box=None)
    for known in recipe_names():
        table.add_row(known, load_recipe(known).description)
    Console().print(table)
