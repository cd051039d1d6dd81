"""`nextscale paper`: the paper's tables, measured on this machine."""

from __future__ import annotations

import click

from nextscale.cli.lazy_group import LazyGroup

# name -> the module in this room, the click command in it, and what it does; imported only when it runs.
COMMANDS = {
    "table-1": ("table_1", "table_1", "Class-conditional pictures, by IS, FID and KL."),
    "table-2": ("table_2", "table_2", "Text to image: Infinity, by pictures and by bits."),
    "table-3": ("table_3", "table_3", "Photographs that are edited, by LPIPS and class probability."),
    "table-4": ("table_4", "table_4", "Parts of the method at 4/6, by the same."),
    "table-a": ("table_a", "table_a", "Correlations of attention's quantization noises, and the error they make."),
    "table-b": ("table_b", "table_b", "What shift-and-sum costs by theta, and what pictures gain by it."),
    "table-c": ("table_c", "table_c", "Images per second, with where the time goes."),
    "table-d": ("table_d", "table_d", "Segmentation with a model of yours."),
    "figures": ("figures", "figures", "Its figures, as pictures and as numbers."),
    "clean": ("paper_clean", "paper_clean", "List what the tables have built, and remove it."),
}


@click.group(cls=LazyGroup, entries=COMMANDS)
def paper() -> None:
    """Measure the paper's tables on this machine, the paper's figures beside ours."""
