"""`nextscale paper figures`: the paper's figures as pictures and numbers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from nextscale.cli import options
from nextscale.cli.judging_options import Judging, count_of_pictures, judging_options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import RANDOM_WEIGHTS, paper_model, source_of
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.store_options import store_options
from nextscale.evaluate.lpips import Lpips
from nextscale.models.var.sources import VARSource
from nextscale.paper._estimated_time import in_words
from nextscale.paper._figure import FigureLeftOut, Judges, Settings, Workshop
from nextscale.paper._figures_plan import plan_figures
from nextscale.paper._photographs import read_photographs
from nextscale.paper._plan import PICTURES, PlannedStep
from nextscale.paper._quality import require_reference
from nextscale.paper.figure_editing import PHOTOGRAPHS
from nextscale.paper.figures import FIGURES, document, file_stem, recipes_of
from nextscale.paper.recipe_bundles import RecipeBundles
from nextscale.paper.store import FIGURES as FOLDER
from nextscale.paper.store import Store
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._wording import counted
from nextscale.runtime.image_io import require_writable, write_files


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES), case_sensitive=False), metavar="[NAME]…")
@paper_model
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where figure_NAME.png and figure_NAME.json go; needed unless --plan is given.")  # fmt: skip
@click.option("--images", type=click.IntRange(2),
              help="5 and F: pictures of each point.  [default: 5000; of official models 50000]")  # fmt: skip
@click.option("--observed", type=click.IntRange(1), default=16, show_default=True,
              help="1a, 2 and 5: images that attention is observed on.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1), default=256, show_default=True,
              help="1b and 6: calibration samples.")  # fmt: skip
@click.option("--pictures", type=click.IntRange(1), default=8, show_default=True,
              help="A, B and E: pictures of each row.")  # fmt: skip
@click.option("--photographs", type=click.Path(path_type=Path, exists=True), metavar="DIR|NPZ",
              help="D: what is edited, as in table-3.  [default: D is left out]")  # fmt: skip
@click.option("--block", type=click.IntRange(1), metavar="N",
              help="1a and 5: the block whose error is shown.  [default: the mean over blocks]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of all that is sampled.")
@judging_options
@options.picture_batch
@options.threads
@options.spinning
@options.operators
@store_options
@options.roundings
@options.calibration_images
@options.plan
def figures(
    names: tuple[str, ...],
    model: VAROptions,
    out: Path | None,
    images: int | None,
    observed: int,
    samples: int,
    pictures: int,
    photographs: Path | None,
    block: int | None,
    seed: int,
    judging: Judging,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    store: Store,
    roundings: Path | None,
    calibration_images: int | None,
    plan: bool,
) -> None:
    """Draw the paper's figures, each as a picture and as its numbers in JSON; without NAME all of them.

    \b
    1a  error of attention times values by stage, BRECQ at 4/6 bits
    1b  how often calibration samples take each entry of the codebook
    2   attentive tokens by stage; the quantization kernel and its error
    5   error of attention times values, BRECQ and Ours; IS and FID by budget
    6   as 1b, before and after resampling
    A   pictures of full precision, BRECQ, LiteVAR and Ours at 6/6 bits
    B   the same, the first two stages forced with full precision's tokens
    D   photographs edited by these
    E   pictures of full precision and of Ours at 6/6, 4/8 and 4/4 bits
    F   IS and FID by bit operations

    Recipes whose learned rounding is not at hand are left out, with a line. After Ctrl-C the same command goes on from
    where it was.

    \b
    nextscale paper figures 1b 2 6 --out figures
    nextscale paper figures --out figures --roundings benchmarks/roundings --images 1000
    """
    wanted = [name for name in FIGURES if not names or name in names]
    if importlib.util.find_spec("matplotlib") is None:
        raise NextscaleError('the figures need matplotlib, which is not installed: pip install "nextscale[eval]"')
    read = [path for path in (model.var, model.vae, photographs, roundings) if path is not None] + judging.read
    if plan:
        options.refuse("--plan, which writes nothing,", "out")
    elif out is None:
        raise click.UsageError("where shall the figures go? Give --out")
    else:
        make_folder(out)
        require_writable([path for name in wanted for path in _files(out, name)], read)
    settings = Settings(
        seed,
        count_of_pictures(images, model),
        observed,
        samples if calibration_images is None else min(samples, calibration_images),
        pictures,
        None if block is None else block - 1,
        batch,
        calibration_images,
    )
    session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
    judges = _judges(wanted, photographs, judging, threads)
    told = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    lines = list[str]()
    try:
        with show_resumable_steps(store.folder) as steps:
            steps("reading the model")
            source = source_of(model)
            edits = photographs is not None and any(FIGURES[name].edits for name in wanted)
            bundles = RecipeBundles(store, lambda: source, roundings, session, encoder=edits)
            work = store.folder / FOLDER if out is None else store.figures
            workshop = Workshop(bundles, session, work, settings, judges, photographs, steps)
            _require(workshop, source)
            if out is None:
                steps("measuring a batch of each bundle")
                planned, left_out = plan_figures(workshop, wanted, source.model_info())
                steps.finish()
                print_plan(planned, left_out)
                return
            bundles.hold(workshop.recipe(name) for name in recipes_of(wanted))
            told.print(f"figures {', '.join(wanted)}: full precision first, whose speed tells how long they take")
            _ = workshop.original
            planned, _ = plan_figures(workshop, wanted, source.model_info())
            steps.finish()
            told.print(_in_a_line(planned))
            warnings = [RANDOM_WEIGHTS] if model.random_weights else []
            for name in wanted:
                lines += _draw(replace(workshop, left_out=[], warnings=[*warnings]), name, out)
    finally:  # also of figures that were made before one was interrupted
        for line in lines:
            click.echo(printable(line))


def _in_a_line(planned: Sequence[PlannedStep]) -> str:
    pictures, seconds = (sum(step.left.get(PICTURES, 0) for step in planned), sum(step.seconds for step in planned))
    unbuilt = sum(step.builds for step in planned)
    return f"{counted(unbuilt, 'bundle')} to build, {pictures} pictures for IS and FID: about {in_words(seconds)}"


def _draw(workshop: Workshop, name: str, out: Path) -> list[str]:
    """Make and write a figure, and say so; or why it is left out."""
    try:
        figure = FIGURES[name].make(workshop)
    except FigureLeftOut as reason:
        return [f"figure {name} left out: {reason}", *(f"  {line}" for line in workshop.left_out)]
    png, json_path = _files(out, name)
    text = json.dumps(document(workshop, name, figure), indent=1, allow_nan=False) + "\n"
    write_files({png: figure.writer, json_path: lambda file: file.write(text.encode())})
    left_out = [f"  left out: {line}" for line in workshop.left_out]
    return [f"figure {name}: {png}, {json_path.name}", *left_out, *(f"  {line}" for line in workshop.warnings)]


def _files(out: Path, name: str) -> tuple[Path, Path]:
    stem = file_stem(name)
    return out / f"{stem}.png", out / f"{stem}.json"


def _judges(wanted: Sequence[str], photographs: Path | None, judging: Judging, threads: int) -> Judges:
    """Those that the figures need."""
    edits = photographs is not None and any(FIGURES[name].edits for name in wanted)
    network = judging.network(threads) if any(FIGURES[name].judged for name in wanted) else None
    classifier = judging.classifier(threads) if edits else None
    distances = {"alex": Lpips("alex", threads=threads), "vgg": Lpips("vgg", threads=threads)} if edits else {}
    return Judges(network, classifier, judging.real_pictures(), distances)


def _require(workshop: Workshop, source: VARSource) -> None:
    """Raise NextscaleError where the model does not go with what is asked for."""
    model, judges, block = source.model_info(), workshop.judges, workshop.settings.block
    if block is not None and block >= model.depth:
        raise NextscaleError(f"--block {block + 1}: the model has {model.depth}")
    if judges.reference is not None and judges.network is not None:
        require_reference(judges.reference, judges.network, model)
    least = max((distance.least_side for distance in judges.distances.values()), default=0)
    if min(model.image_size) < least:
        height, width = model.image_size
        raise NextscaleError(f"figure D: pictures of {height} x {width} pixels; LPIPS needs {least} on each side")
    if workshop.photographs is not None and judges.distances:  # read once more when all is built, which takes hours
        read_photographs(workshop.photographs, model, PHOTOGRAPHS, workshop.settings.seed)
