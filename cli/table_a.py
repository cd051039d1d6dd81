"""`nextscale paper table-a`: how far the quantization noises of attention are correlated."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import DEMO, RANDOM_WEIGHTS, paper_model, require_sampling, source_of
from nextscale.cli.paper_tables import print_plan, print_table
from nextscale.cli.progress import Steps, show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import built_rows, planned_rows
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.layers import facts_of
from nextscale.paper._estimated_time import image_seconds, in_words, observing_seconds
from nextscale.paper._observed_attention import Observing
from nextscale.paper._plan import OBSERVED, PlannedStep
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.recipe_bundles import FULL_PRECISION, RecipeBundle, RecipeBundles
from nextscale.paper.store import FIGURES, Store
from nextscale.paper.table_a import (
    ROWS,
    TableA,
    markdown,
    measure_table_a,
    panels,
    plan_table_a,
    recipe_of_row,
    require_size,
    sections,
)
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._wording import counted
from nextscale.runtime.image_io import require_writable, write_files

SHOWN = 3  # sections on a terminal; --markdown has all


@click.command("table-a")
@paper_model
@click.option("--rows", default=",".join(ROWS), metavar="NAME,…",
              help="Recipes with integer attention.  [default: log2 and row-scaled weights at 8, 6 and 4 bits, each "
              "with shift-and-sum and without, all else in float]")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=16, show_default=True,
              help="Images that attention is observed on; the paper has 1000.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**62), default=1, show_default=True,
              help="Of their labels and tokens; calibration has 0.")  # fmt: skip
@options.cfg_scale
@options.threads
@store_options
@click.option("--roundings", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with the model's learned rounding, as RECIPE.safetensors; for rows of yours that need it.",
              )  # fmt: skip
@options.calibration_images
@options.plan
@options.json_file
@options.markdown_file
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), metavar="FILE",
              help="The error of attention's product by stage, as PNG.")  # fmt: skip
def table_a(
    model: VAROptions,
    rows: str,
    images: int,
    seed: int,
    cfg_scale: float,
    threads: int,
    store: Store,
    roundings: Path | None,
    calibration_images: int | None,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure whether the quantization noises of attention are as independent as the paper's Eq. 8 takes them to be.

    Beside the correlations stands what the noises do: the error of attention's product with the values by stage, with
    shift-and-sum and without, and how much of it is the weights' and the values' part.

    The model is the demo model, unless --var and --vae name a VAR-d30, the paper's. Bundles are built into --store;
    after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-a --markdown table_a.md
    nextscale paper table-a --var var_d30.pth --vae vae_ch160v4096z32.pth --rows a6-log2,a6-log2-ss
    """
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path", "plot_path")
    names = _names(rows)
    read = [path for path in (model.var, model.vae, roundings) if path is not None]
    require_writable([path for path in (json_path, markdown_path, plot_path) if path is not None], read)
    _require_plot(plot_path)
    session = SessionOptions(threads=threads, ops="stock")
    observing = Observing(images, seed, cfg_scale)
    with show_resumable_steps(store.folder) as steps:
        bundles, recipes, planned, left_out = _planned(
            model, names, calibration_images, store, roundings, observing, session, steps
        )
        steps.finish()
        if plan:
            print_plan(planned, left_out)
            return
        _tell(planned)
        original, rows_built, left_out = _built(bundles, recipes, steps)
        del bundles  # and the model in torch with it
        table = measure_table_a(
            original.bundle,
            rows_built,
            observing,
            store.figures,
            options=session,
            left_out=left_out,
            notes=[RANDOM_WEIGHTS] if model.random_weights else [],
            on_images=steps,
        )
    writers = table_writers(json_path, table.to_json(), markdown_path, markdown(table))
    if plot_path is not None:
        from nextscale.evaluate.plot_attention_error import plot_attention_error

        title = f"Error of attention's product with the values: {table.correlations.model}"
        curves = panels(table.observed)
        writers[plot_path] = lambda file: plot_attention_error(file, curves, title)
    write_files(writers)
    _print(table, results_console(json_path, markdown_path, plot_path))


def _names(text: str) -> list[str]:
    """What --rows names.

    Raises:
        click.BadParameter: a row twice.
        NextscaleError: there is no such recipe, or its attention is in float.
    """
    names = [name.strip() for name in text.split(",")]
    found = [recipe_of_row(name, ()).name for name in names]
    if len(set(found)) < len(found):
        raise click.BadParameter(f"{text!r} has a recipe twice", param_hint="--rows")
    return names


def _planned(
    model: VAROptions,
    names: Sequence[str],
    calibration_images: int | None,
    store: Store,
    roundings: Path | None,
    observing: Observing,
    session: SessionOptions,
    steps: Steps,
) -> tuple[RecipeBundles, list[Recipe], list[PlannedStep], list[str]]:
    """The model's bundles, the rows' recipes, what is left to do, and lines on rows that cannot be built."""
    steps("reading the model")
    source = source_of(model)
    info, facts = source.model_info(), facts_of(source.var)
    require_size(info, is_demo=model.model == DEMO)
    require_sampling(info, cfg_scale=observing.cfg_scale)
    layers = [layer.name for layer in facts.layers]
    recipes = [with_fewer_images(recipe_of_row(name, layers), calibration_images) for name in names]
    bundles = RecipeBundles(store, lambda: source, roundings, session, encoder=False)
    bundles.require_model()
    rows, left_out = planned_rows([paper_recipe(FULL_PRECISION), *recipes], bundles)
    work = store.folder / FIGURES
    planned = plan_table_a(rows, observing, work, image_seconds(info, facts), observing_seconds(info))
    return bundles, recipes, planned, left_out


def _built(
    bundles: RecipeBundles, recipes: Sequence[Recipe], steps: Steps
) -> tuple[RecipeBundle, list[RecipeBundle], list[str]]:
    """Full precision, the rows' bundles, and lines on rows that cannot be built."""
    full = paper_recipe(FULL_PRECISION)
    bundles.hold([full, *recipes])
    original = bundles.build(full, steps)
    return original, *built_rows(recipes, bundles, steps)


def _require_plot(path: Path | None) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise click.UsageError(f"--plot {path}: the plot is written as PNG; give a name that ends in .png")
    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise NextscaleError('--plot needs matplotlib, which is not installed: pip install "nextscale[eval]"')


def _tell(planned: Sequence[PlannedStep]) -> None:
    """What will be done, and about how long it takes."""
    images, seconds = (sum(step.left.get(OBSERVED, 0) for step in planned), sum(step.seconds for step in planned))
    unbuilt = counted(sum(step.builds for step in planned), "bundle")
    told = f"{unbuilt} to build, attention of {images} images to observe"
    click.echo(f"{told}: about {in_words(seconds)} on two cores", err=True)


def _print(table: TableA, console: Console) -> None:
    print_table(table.correlations, console)
    for title, (headers, rows) in list(sections(table).items())[:SHOWN]:
        shown = Table(*headers, box=SIMPLE, title=title, title_justify="left")
        for cells in rows:
            shown.add_row(*map(printable, cells))
        console.print(shown)
