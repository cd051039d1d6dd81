"""`nextscale paper table-d`: a segmentation model of the user's, in full precision and by recipes."""

from __future__ import annotations

from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from nextscale.cli import options
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.paper._coco import AveragePrecision, Coco
from nextscale.paper._segmentation_agreement import Thresholds
from nextscale.paper._table_d_page import headers, markdown, notes, row_cells
from nextscale.paper._table_d_rows import ROWS
from nextscale.paper.segmentation import OVERLAP, SCORE
from nextscale.paper.segmenter import read_photographs
from nextscale.paper.store import Store
from nextscale.paper.table_d import Measuring, TableD, measure_table_d, plan_table_d
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_writable, write_files


@click.command("table-d")
@click.option("--model", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="OneFormer in ONNX, as examples/oneformer/export.py writes it.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), required=True, metavar="NPZ|DIR",
              help="An .npz with an array for each input, samples along its first axis, or a folder of such; "
              "examples/oneformer/samples.py writes one.")  # fmt: skip
@click.option("--images", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Photographs on which rows are compared with full precision; none of those of --calibration.",
              )  # fmt: skip
@click.option("--rows", default=",".join(ROWS), metavar="NAME|FILE,…",
              help="Rows of the table, or recipes; one of them full precision.  [default: GPTQ in the paper's four "
              "ways and default at 6/6 and 4/4, default and static-w8a8 at 8/8]")  # fmt: skip
@click.option("--coco", "coco_path", type=click.Path(path_type=Path), metavar="DIR",
              help="COCO's folder, with val2017 and its panoptic annotations: also measure mIoU, AP and PQ.",
              )  # fmt: skip
@click.option("--coco-images", type=click.IntRange(1), metavar="N", help="Pictures of COCO, at most.  [default: all]")
@click.option("--score-threshold", type=options.FiniteRange(0, 1), default=SCORE, show_default=True,
              help="The least probability of a panoptic segment's class; 0 for models that were not trained.",
              )  # fmt: skip
@click.option("--overlap-threshold", type=options.FiniteRange(0, 1), default=OVERLAP, show_default=True,
              help="The least share of its mask that a panoptic segment keeps; 0 for models that were not trained.",
              )  # fmt: skip
@click.option("--budget", type=options.FiniteRange(0, 1), metavar="SHARE",
              help="Operations that shift-and-sum may add.  [default: the recipes', 0.01]")  # fmt: skip
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True, help="To time all rows in; 0: none.")
@options.threads
@store_options
@options.plan
@options.json_file
@options.markdown_file
def table_d(
    model: Path,
    calibration: Path,
    images: Path,
    rows: str,
    coco_path: Path | None,
    coco_images: int | None,
    score_threshold: float,
    overlap_threshold: float,
    budget: float | None,
    rounds: int,
    threads: int,
    store: Store,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Segment photographs with full precision and with recipes, and measure how alike the results are.

    The rows of the paper's Table D, carried to a model that is only a graph, whose residual blocks are found in it.
    Models are kept in --store; after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-d --model oneformer.onnx --calibration samples.npz --images photographs
    nextscale paper table-d --model oneformer.onnx --calibration samples.npz --images photographs --coco coco
    """
    if rounds == 1:
        raise click.BadParameter("1: expected 0, or at least 2, between which times differ", param_hint="--rounds")
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path")
    if coco_path is None:
        options.refuse("a table without --coco", "coco_images")
    read = [path for path in (model, calibration, images, coco_path) if path is not None]
    require_writable([path for path in (json_path, markdown_path) if path is not None], read)
    coco = None
    if coco_path is not None:
        coco = Coco(coco_path, coco_images)
        AveragePrecision([*coco.things])  # whose package may be missing
    photographs = read_photographs(images)
    names = [name.strip() for name in rows.split(",")]
    measuring = Measuring(Thresholds(score_threshold, overlap_threshold), rounds, budget)
    asked, session = (model, calibration, photographs, names, store), SessionOptions(threads=threads)
    with show_resumable_steps(store.folder) as steps:
        if plan:
            steps("looking at a photograph")
            planned, left_out = plan_table_d(*asked, measuring=measuring, coco=coco, options=session)
            steps.finish()
            print_plan(planned, left_out)
            return
        table = measure_table_d(*asked, measuring=measuring, coco=coco, options=session, on_pictures=steps)
    write_files(table_writers(json_path, table.to_json(), markdown_path, markdown(table)))
    _print(table, results_console(json_path, markdown_path))


def _print(table: TableD, console: Console) -> None:
    console.soft_wrap = True
    console.width = max(console.width, 200) if not console.is_terminal else console.width
    for note in notes(table):
        console.print(printable(note))
    shown = Table(Column("method", no_wrap=True), "W/A", *headers(table), box=SIMPLE)
    for row in table.rows:
        shown.add_row(*map(printable, [row.method, row.bits, *row_cells(table, row)]))
    console.print(shown)
    for line in table.left_out:
        console.print(printable(f"left out: {line}"))
    for line in table.warnings:
        console.print(printable(f"warning: {line}"))
