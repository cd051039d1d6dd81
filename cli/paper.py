"""`nextscale paper`: the paper's tables, measured on this machine."""

from __future__ import annotations

import click

from nextscale.cli.lazy_group import LazyGroup

# name -> the module in this room, the click command in it, and what it does; imported only when it runs.
COMMANDS = {
    "table-2": ("table_2", "table_2", "Text to image: Infinity, by pictures and by bits."),
    "table-3": ("table_3", "table_3", "Photographs that are edited, by LPIPS and class probability."),
    "table-c": ("table_c", "table_c", "Images per second, with where the time goes."),
    "table-d": ("table_d", "table_d", "Segmentation with a model of yours."),
    "clean": ("paper_clean", "paper_clean", "List what the tables have built, and remove it."),
}


@click.group(cls=LazyGroup, entries=COMMANDS)
def paper() -> None:
    """Measure the paper's tables on this machine, the paper's figures beside ours."""
