"""`nextscale paper table-3`: photographs edited with full precision and with recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.learning_options import learning_options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import MODEL, RANDOM_WEIGHTS, paper_model, require_sampling, source_of
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import built_rows, planned_rows, reference_first
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.imagenet_classes import imagenet_ids
from nextscale.evaluate.lpips import Lpips
from nextscale.evaluate.prompt_scores import ClipScore
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.sources import VARSource
from nextscale.paper._class_scores import ClassClipScore, ClassProbability, ClassScore, prompt_names
from nextscale.paper._editing import Editing, Measures
from nextscale.paper._photographs import NO_LABEL, Photographs, read_photographs
from nextscale.paper._table_3_page import difference_cells, markdown, notes, row_cells, titles
from nextscale.paper._table_3_sheet import sheet
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.recipe_bundles import Learning, RecipeBundle, RecipeBundles, given_bundle
from nextscale.paper.store import FIGURES, Store
from nextscale.paper.table_3 import ROWS, Table3, measure_table_3, plan_table_3
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import picture_writer, require_picture_format, require_writable, write_files


@click.command("table-3")
@paper_model
@click.option("--photographs", "photographs_path", type=click.Path(path_type=Path, exists=True), required=True,
              metavar="DIR|NPZ", help="What is edited: a folder of pictures, or an .npz with images, uint8 "
              "[N, H, W, 3], and perhaps labels, classes of the model.")  # fmt: skip
@click.option("--rows", default=",".join(ROWS), metavar="NAME|DIR,…",
              help="Recipes, of which bundles are built, or bundles' folders; one of them full precision.  [default: "
              "those of the paper and default, at 8/8, 6/6 and 4/4]")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=1000, show_default=True, help="Photographs, at most.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=0, show_default=True,
              help="Of the sampled tokens; the noise floor has the next one.")  # fmt: skip
@click.option("--region-seed", type=click.IntRange(0, 2**63), default=0, show_default=True,
              help="Of the boxes' places and of the choice of photographs.")  # fmt: skip
@options.cfg_scale
@options.top_k
@options.top_p
@click.option("--clip", "clip_path", type=click.Path(path_type=Path), metavar="DIR",
              help="Judge editing by class by the CLIP score, of a CLIP that transformers saved.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Photographs at a time.")
@options.threads
@options.spinning
@options.operators
@store_options
@options.roundings
@learning_options
@options.calibration_images
@options.plan
@options.json_file
@options.markdown_file
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), metavar="FILE",
              help="Fig. D: photographs, masks and each row's results, as a picture.")  # fmt: skip
def table_3(
    model: VAROptions,
    photographs_path: Path,
    rows: str,
    images: int,
    seed: int,
    region_seed: int,
    cfg_scale: float,
    top_k: int | None,
    top_p: float,
    clip_path: Path | None,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    store: Store,
    roundings: Path | None,
    learning: Learning | None,
    calibration_images: int | None,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    sheet_path: Path | None,
) -> None:
    """Edit photographs with full precision and with recipes, and measure how near the results are.

    In- and outpainting are judged by LPIPS (AlexNet and VGG16) to the photograph, class-conditional editing by the
    CLIP score of --clip, or else by the probability that EfficientNet-Lite0 gives to the photograph's class.

    The model is the demo model, unless --var and --vae name another VAR; the paper's is VAR-d30. Bundles are built into
    --store, unless --rows names folders of them; after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-3 --photographs photos --images 100 --sheet fig_d.png
    nextscale paper table-3 --photographs val.npz --rows my-fp32,my-int8 --plan
    nextscale paper table-3 --photographs val.npz --var var_d30.pth --vae vae_ch160v4096z32.pth --learn --device cuda
    """
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path", "sheet_path")
    if sheet_path is not None:
        require_picture_format(sheet_path)
    if model.random_weights:
        options.refuse("--random-weights, which cannot be learned,", "learn")
    wanted = _rows(rows, calibration_images)
    given = [item.bundle for item in wanted if isinstance(item, RecipeBundle)]
    if given:
        options.refuse("--rows with bundles' folders", *MODEL, "roundings", "learn", "calibration_images")
    read = [path for path in (photographs_path, model.var, model.vae, clip_path, roundings) if path is not None]
    require_writable(
        [path for path in (json_path, markdown_path, sheet_path) if path is not None],
        [*read, *(path for bundle in given for path in bundle.paths())],
    )
    session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
    editing = Editing(seed, region_seed, cfg_scale, top_k, top_p, batch)
    clip = None if clip_path is None else ClipScore(clip_path)
    distances = {"alex": Lpips("alex", threads=threads), "vgg": Lpips("vgg", threads=threads)}
    with show_resumable_steps(store.folder) as steps:
        load = cache(lambda: source_of(model))
        steps("reading the model")
        info, class_names = _model(given, load)
        require_sampling(info, cfg_scale=cfg_scale, top_k=top_k, top_p=top_p)
        _require_large(info, distances)
        # Before bundles are built, which can take hours.
        photographs = read_photographs(
            photographs_path,
            info,
            images,
            region_seed,
            lambda done, total: steps("reading photographs", done, total),
        )
        score = _class_score(clip, class_names, info, photographs, threads)
        measures = Measures(distances, score)
        model_bundles = RecipeBundles(store, load, roundings, session, learning)
        if plan:
            planned, left_out = planned_rows(wanted, model_bundles)
            steps("measuring a batch of each bundle")
            told = plan_table_3(planned, photographs, measures, editing, store.folder / FIGURES, session)
            steps.finish()
            print_plan(told, left_out)
            return
        model_bundles.hold([item for item in wanted if isinstance(item, Recipe)])
        bundles, left_out = built_rows(wanted, model_bundles, steps)
        del model_bundles, load  # and the model in torch with them
        table = measure_table_3(
            bundles,
            photographs,
            measures,
            editing,
            store.figures,
            options=session,
            left_out=left_out,
            notes=[RANDOM_WEIGHTS] if model.random_weights else [],
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
        raise click.BadParameter("give recipes or bundles' folders, not both", param_hint="--rows")
    return found


def _model(given: Sequence[Bundle], load: Callable[[], VARSource]) -> tuple[ModelInfo, Sequence[str] | None]:
    """The shape and the classes' names of the bundles' model, or of the one that is to be built."""
    if given:
        return given[0].model, given[0].manifest.class_names
    return load().model_info(), load().class_names


def _require_large(model: ModelInfo, distances: Mapping[str, Lpips]) -> None:
    least = max(distance.least_side for distance in distances.values())
    if min(model.image_size) < least:
        height, width = model.image_size
        raise NextscaleError(f"the model has pictures of {height} x {width} pixels; LPIPS needs {least} on each side")


def _class_score(
    clip: ClipScore | None,
    class_names: Sequence[str] | None,
    model: ModelInfo,
    photographs: Photographs,
    threads: int,
) -> ClassScore | None:
    """CLIP's if it is given, or else a classifier's, where a photograph has a class that it knows."""
    labels = {int(label) for label in photographs.labels} - {NO_LABEL}
    if clip is not None:
        names = prompt_names(class_names, model.num_classes)
        if not labels or not names:
            raise NextscaleError("--clip scores editing by class, and the photographs have no labels with names")
        return ClassClipScore(clip, names)
    ids = imagenet_ids(class_names, model.num_classes)
    return ClassProbability(FeatureNetwork(threads=threads), ids) if any(ids[label] for label in labels) else None


def _print(table: Table3, console: Console) -> None:
    console.soft_wrap = True
    console.width = max(console.width, 160) if not console.is_terminal else console.width
    for note in notes(table):
        console.print(note)
    figures = "LPIPS" if table.class_score is None else f"LPIPS and {table.class_score}"
    differing = [difference_cells(table, row) for row in table.rows if row.differences]
    for title, rows in (
        (figures, [row_cells(table, row) for row in table.rows]),
        ("paired differences to full precision", differing),
    ):
        shown = Table("method", "W/A", *titles(table), box=SIMPLE, title=title, title_justify="left")
        for cells in rows:
            shown.add_row(*map(printable, cells))
        console.print(shown)
    for line in table.left_out:
        console.print(printable(f"left out: {line}"))
