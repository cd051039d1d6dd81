"""`nextscale report`: bundles and what was measured of them, as one HTML page."""

import importlib.util
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nextscale.cli import options
from nextscale.cli.results import print_path
from nextscale.cli.subjects import prompts_file, read_prompts
from nextscale.report._rows import by_model, read_inputs
from nextscale.report._sheets import Sheet, SheetSettings, make_sheets, sheet_images
from nextscale.report.report import report_page
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import require_writable, write_files


@click.command()
@click.argument("paths", metavar="DIR|FILE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.html", help="The page to write.")
@click.option("--title", default="Quantized bundles against full precision", show_default=True, metavar="TEXT")
@click.option("--images", type=click.IntRange(0, 256), default=16, show_default=True, metavar="N",
              help="Pictures of each bundle; 0: none.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="S")
@click.option(
    "--class", "classes", multiple=True, metavar="ID|NAME", help="Repeat for several.  [default: all classes]"
)
@prompts_file()
@options.size
@options.bundle_cfg_scale
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Images at a time.")
@options.threads
def report(
    paths: tuple[Path, ...],
    out: Path,
    title: str,
    images: int,
    seed: int,
    classes: tuple[str, ...],
    prompts: Path | None,
    area: str | None,
    ratio: str | None,
    cfg_scale: float | None,
    batch: int,
    threads: int,
) -> None:
    """Put bundles and results into one HTML page that needs no other file.

    Give any number of bundles, of files that evaluate, metrics, bench and theta wrote with --json, and of folders that
    calibrate made. Figures are matched to bundles by the ends of their paths. Every bundle draws the same classes, or
    prompts, and seeds; if one is in full precision, the others also draw from its tokens of the first two stages.

    \b
    nextscale evaluate demo-fp32 demo-int8 --json evaluate.json
    nextscale bench demo-fp32 demo-int8 --json bench.json
    nextscale report demo-fp32 demo-int8 evaluate.json bench.json --out report.html
    """
    if out.suffix.lower() != ".html":
        raise click.UsageError(f"--out {out}: the page is written as HTML; give a name that ends in .html")
    if importlib.util.find_spec("matplotlib") is None:
        raise NextscaleError('a report needs matplotlib, which is not installed: pip install "nextscale[eval]"')
    inputs = read_inputs(paths)
    read = [path for bundle in inputs.bundles for path in bundle.paths()]
    read += [] if prompts is None else [prompts]
    require_writable([out], [*read, *(path for path in paths if not (path / MANIFEST_NAME).exists())])
    settings = SheetSettings(
        images,
        seed,
        classes,
        None if prompts is None else tuple(read_prompts(prompts)),
        area,
        ratio,
        cfg_scale,
        batch,
        SessionOptions(threads=threads, keep_text_encoder=False),
    )
    page = report_page(inputs, _sheets(inputs.bundles, settings), title)
    write_files({out: lambda file: file.write(page.encode(errors="replace"))})
    print_path(out)


def _sheets(bundles: tuple[Bundle, ...], settings: SheetSettings) -> list[Sheet]:
    """The pictures of every model, with progress on a terminal."""
    groups = by_model(bundles) if settings.images else []
    for group, _ in groups:
        settings.require(group[0])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, quiet=not sys.stderr.isatty())) as progress:
        total = sum(sheet_images(group, original, settings) for group, original in groups)
        task = progress.add_task("drawing", total=total)

        def advance(bundle: Bundle, images: int) -> None:
            progress.update(task, advance=images, description=f"drawing with {bundle.manifest.name}")

        return [sheet for group, original in groups for sheet in make_sheets(group, original, settings, advance)]
