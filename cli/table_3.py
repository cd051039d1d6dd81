"""`nextscale paper table-3`: photographs edited with full precision and with recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import built_rows, planned_rows, reference_first
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.imagenet_classes import imagenet_ids
from nextscale.evaluate.lpips import Lpips
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.sources import VARSource, demo_source
from nextscale.paper._editing import Editing, Measures
from nextscale.paper._photographs import Photographs, read_photographs
from nextscale.paper._table_3_page import difference_cells, markdown, notes, row_cells, titles
from nextscale.paper._table_3_sheet import sheet
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.recipe_bundles import RecipeBundle, RecipeBundles, UnbuiltBundle, given_bundle
from nextscale.paper.store import FIGURES, Store
from nextscale.paper.table_3 import ROWS, Table3, measure_table_3, plan_table_3
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._operators import Ops
from nextscale.runtime._request import resolve_top_k
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import picture_writer, require_picture_format, require_writable, write_files


@click.command("table-3")
@click.option("--photographs", "photographs_path", type=click.Path(path_type=Path, exists=True), required=True,
              metavar="DIR|NPZ", help="What is edited: a folder of pictures, or an .npz with images, uint8 "
              "[N, H, W, 3], and perhaps labels, classes of the model.")  # fmt: skip
@click.option("--rows", default=",".join(ROWS), metavar="NAME|DIR,…",
              help="Recipes, of which bundles of the demo model are built, or bundles' folders; one of them full "
              "precision.  [default: those of the paper and default, at 8/8, 6/6 and 4/4]")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=1000, show_default=True, help="Photographs, at most.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True,
              help="Of the sampled tokens; the noise floor has the next one.")  # fmt: skip
@click.option("--region-seed", type=click.IntRange(0, 2**63), default=0, show_default=True,
              help="Of the boxes' places and of the choice of photographs.")  # fmt: skip
@options.cfg_scale
@options.top_k
@options.top_p
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Photographs at a time.")
@options.threads
@options.spinning
@options.operators
@store_options
@click.option("--roundings", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with the demo model's learned rounding, as RECIPE.safetensors.")  # fmt: skip
@options.calibration_images
@options.plan
@options.json_file
@options.markdown_file
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Fig. D: photographs, masks and each row's results, as a picture.")  # fmt: skip
def table_3(
    photographs_path: Path,
    rows: str,
    images: int,
    seed: int,
    region_seed: int,
    cfg_scale: float,
    top_k: int | None,
    top_p: float,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    store: Store,
    roundings: Path | None,
    calibration_images: int | None,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    sheet_path: Path | None,
) -> None:
    """Edit photographs with full precision and with recipes, and measure how near the results are.

    In- and outpainting are judged by LPIPS (AlexNet and VGG16) to the photograph, class-conditional editing by the
    probability that EfficientNet-Lite0 gives to the photograph's class, which is no CLIP score. Bundles of the demo
    model are built into --store; after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-3 --photographs photos --images 100 --sheet fig_d.png
    nextscale paper table-3 --photographs val.npz --rows my-fp32,my-int8 --plan
    """
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path", "sheet_path")
    if sheet_path is not None:
        require_picture_format(sheet_path)
    session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
    editing = Editing(seed, region_seed, cfg_scale, top_k, top_p, batch)
    load = cache(lambda: demo_source("demo"))
    model_bundles = RecipeBundles(store, load, roundings, session)
    wanted = _rows(rows, calibration_images)
    given = [item.bundle for item in wanted if isinstance(item, RecipeBundle)]
    require_writable(
        [path for path in (json_path, markdown_path, sheet_path) if path is not None],
        [photographs_path, *(path for bundle in given for path in bundle.paths())],
    )
    distances = {"alex": Lpips("alex", threads=threads), "vgg": Lpips("vgg", threads=threads)}
    with show_resumable_steps(store.folder) as steps:
        # What the photographs have to be is known by full precision; building all others can take an hour.
        if plan:
            planned, left_out = planned_rows(wanted, model_bundles)
            reference = planned[0]
        else:
            model_bundles.hold([item for item in wanted if isinstance(item, Recipe)])
            built, _ = built_rows(wanted[:1], model_bundles, steps)
            reference = built[0]
        shape, class_names = _shape(reference, load)
        photographs = read_photographs(
            photographs_path, shape, images, region_seed, lambda done, total: steps("reading photographs", done, total)
        )
        resolve_top_k(top_k, shape)
        _require_large(shape, distances)
        measures = _measures(distances, shape, class_names, photographs, threads)
        if plan:
            steps("measuring a batch of each bundle")
            told = plan_table_3(planned, photographs, measures, editing, store.folder / FIGURES, session)
            steps.finish()
            print_plan(told, left_out)
            return
        others, left_out = built_rows(wanted[1:], model_bundles, steps)
        table = measure_table_3(
            [*built, *others],
            photographs,
            measures,
            editing,
            store.figures,
            options=session,
            left_out=left_out,
            on_images=lambda name, done: steps(name, done, len(photographs)),
        )
    writers = table_writers(json_path, table.to_json(), markdown_path, markdown(table))
    if sheet_path is not None:
        parameters = {"table": 3, **table.settings, "rows": [row.name for row in table.rows]}
        writers[sheet_path] = picture_writer(sheet_path, sheet(table), parameters)
    write_files(writers)
    _print(table, results_console(json_path, markdown_path, sheet_path))


def _rows(text: str, calibration_images: int | None) -> list[RecipeBundle | Recipe]:
    """What --rows names, full precision first; recipes with at most so many images to calibrate with."""
    found: list[RecipeBundle | Recipe] = []
    for name in (part.strip() for part in text.split(",")):
        found.append(given_bundle(name) or with_fewer_images(paper_recipe(name), calibration_images))
    found = reference_first(found, text)
    recipes = [item for item in found if isinstance(item, Recipe)]
    if recipes and len(recipes) < len(found):
        raise click.BadParameter("give recipes, of the demo model, or bundles' folders, not both", param_hint="--rows")
    return found


def _shape(
    reference: RecipeBundle | UnbuiltBundle, load: Callable[[], VARSource]
) -> tuple[ModelInfo, Sequence[str] | None]:
    """Of the model, and the names of its classes."""
    if isinstance(reference, RecipeBundle):
        return reference.bundle.model, reference.bundle.manifest.class_names
    return load().model_info(), load().class_names


def _require_large(model: ModelInfo, distances: dict[str, Lpips]) -> None:
    least = max(distance.least_side for distance in distances.values())
    if min(model.image_size) < least:
        height, width = model.image_size
        raise NextscaleError(f"the model makes pictures of {height} x {width} pixels; LPIPS needs {least} on each side")


def _measures(
    distances: dict[str, Lpips],
    model: ModelInfo,
    class_names: Sequence[str] | None,
    photographs: Photographs,
    threads: int,
) -> Measures:
    """With a classifier where a photograph has a class that it knows."""
    ids = imagenet_ids(class_names, model.num_classes)
    if not any(label >= 0 and ids[label] for label in photographs.labels):
        return Measures(distances)
    return Measures(distances, FeatureNetwork(threads=threads), ids)


def _print(table: Table3, console: Console) -> None:
    console.soft_wrap = True
    console.width = max(console.width, 160) if not console.is_terminal else console.width
    for note in notes(table):
        console.print(note)
    for title, rows in (
        ("LPIPS and class probability", [row_cells(table, row)[:-2] for row in table.rows]),
        (
            "paired differences to full precision",
            [difference_cells(table, row) for row in table.rows if row.differences],
        ),
    ):
        shown = Table("method", "W/A", *titles(table), box=SIMPLE, title=title, title_justify="left")
        for cells in rows:
            shown.add_row(*map(printable, cells))
        console.print(shown)
    for line in table.left_out:
        console.print(printable(f"left out: {line}"))
