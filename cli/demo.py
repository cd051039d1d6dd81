"""`nextscale demo`: the main job on the demo models, in full precision and int8."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import text_subjects
from nextscale.cli.options import json_file, shown_threads
from nextscale.cli.options import threads as threads_option
from nextscale.cli.progress import show_steps
from nextscale.cli.results import print_path, results_console
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.demo.emoji.bundle import demo_source as emoji_source
from nextscale.demo.emoji.prompts import load_prompts
from nextscale.demo.emoji.sheet import drawn, sheet_prompts
from nextscale.evaluate.comparison import Comparison, compare, paired_sheet
from nextscale.evaluate.teacher_forced import KL_IN_WORDS, Agreement, as_json
from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.bench import Measurement
from nextscale.models.sources import Source
from nextscale.models.var.sources import demo_source as photograph_source
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import STOCK
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._scratch import remove_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._verify import verify
from nextscale.runtime.image_io import png_writer, require_writable, write_files

RECIPES = {"fp32": "fp32", "int8": "default"}
SHEET = "sheet.png"
# Classes that the photograph model draws so that a person can often tell them.
SHEET_CLASSES = (
    *("goldfish", "European fire salamander", "brain coral", "American lobster", "king penguin", "ladybug", "monarch"),
    *("sulphur butterfly", "bison", "African elephant", "convertible", "crane", "frying pan", "lifeboat", "school bus"),
    "snorkel",
)
SUBJECTS_SEED = 1  # of what is compared; calibration has 0


def _photographs(bundles: Sequence[Bundle], session: SessionOptions) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The sheet of classes, and what it holds of itself."""
    labels = [bundles[0].class_label(name) for name in SHEET_CLASSES]
    return paired_sheet(bundles[0], bundles[1], labels, session), {"classes": labels}


def _emoji(bundles: Sequence[Bundle], session: SessionOptions) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The sheet of prompts, and what it holds of itself."""
    return drawn(bundles, sheet_prompts(), options=session)


def _of_prompts(full: Bundle, images: int, session: SessionOptions) -> Subjects:
    prompts = [prompt.prompt for prompt in load_prompts()[1]]
    return text_subjects(Generator(full, session), prompts, images, SUBJECTS_SEED)[0]


@dataclass(frozen=True)
class Demo:
    """A demo model.

    Attributes:
        name: of its folder in OUT.
        source: the model, by the name of a bundle.
        sheet: draws one of two bundles.
        subjects: what compared images are of; None: of classes.
    """

    name: str
    source: Callable[[str], Source]
    sheet: Callable[[Sequence[Bundle], SessionOptions], tuple[NDArray[np.uint8], dict[str, Any]]]
    subjects: Callable[[Bundle, int, SessionOptions], Subjects] | None = None


DEMOS = (
    Demo("emoji", emoji_source, _emoji, _of_prompts),
    Demo("photographs", photograph_source, _photographs),
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option(
    "--images", type=click.IntRange(2), default=16, show_default=True, help="Images to measure the agreement on."
)
@click.option("--repetitions", type=click.IntRange(2), default=8, show_default=True, help="Timed rounds.")
@click.option("--calibration-images", type=click.IntRange(1), default=32, show_default=True)
@json_file
@threads_option
def demo(
    out: Path, images: int, repetitions: int, calibration_images: int, json_path: Path | None, threads: int
) -> None:
    """Build the demo models in full precision and int8, verify and measure both, and draw a sheet of each.

    Bundles that an earlier run left in OUT are built again.
    """
    folders = [out / one.name / precision for one in DEMOS for precision in RECIPES]
    require_writable([json_path] if json_path else [], folders)
    session = SessionOptions(threads=threads)
    console = Console(stderr=True, highlight=False, markup=False)
    shown = results_console(json_path)
    writers, document, comparisons = {}, dict[str, Any](), dict[str, Comparison]()
    for one in DEMOS:
        bundles = [_built(one, out, precision, calibration_images, session) for precision in RECIPES]
        for bundle in bundles:
            report = verify(bundle, session, lambda check: console.print(f"{check.name}: {printable(check.detail)}"))
            if not report.passed:
                raise NextscaleError(f"{bundle.path}: does not pass its own checks on this machine; please report it")
        subjects = one.subjects(bundles[0], images, session) if one.subjects else None
        found = compare(
            *bundles, images=images, repetitions=repetitions, subjects=subjects, options=session, log=console.print
        )
        picture, described = one.sheet(bundles, session)
        writers[out / one.name / SHEET] = png_writer(picture, described | {"rows": list(RECIPES)})
        named = {_variant(ops): agreement for ops, agreement in found.agreements.items()}
        document[one.name] = found.report.to_json() | {"agreement": as_json(named)}
        comparisons[one.name] = found
    sheets = list(writers)
    if json_path:
        text = json.dumps(document, indent=1) + "\n"
        writers[json_path] = lambda file: file.write(text.encode())
    write_files(writers)
    _print(comparisons, images, shown)
    for sheet in sheets:
        print_path(sheet, err=shown.stderr)


def _built(one: Demo, out: Path, precision: str, calibration_images: int, session: SessionOptions) -> Bundle:
    path = out / one.name / precision
    if (path / MANIFEST_NAME).exists():
        remove_folder(path)
    recipe = load_recipe(RECIPES[precision])
    recipe = replace(recipe, calibration=replace(recipe.calibration, images=calibration_images))
    source = one.source(f"nextscale-{one.name}-{precision}")
    with show_steps() as progress:
        return build_bundle(source, path, BuildOptions(recipe, session=session), progress)


def _variant(ops: str) -> str:
    return "int8" if ops == STOCK else f"int8 {ops}"


def _print(comparisons: dict[str, Comparison], images: int, console: Console) -> None:
    report = next(iter(comparisons.values())).report
    console.print(
        f"{report.machine.cpu}, {' '.join(report.machine.isa)}, threads {shown_threads(report.settings['threads'])}, "
        f"onnxruntime {report.versions['onnxruntime']}; agreement on {images} images, all fed the same tokens; in "
        "parentheses over full precision"
    )
    table = Table("", "images/s", "size, MB", "peak, MB", "same", "KL", box=None, padding=(0, 2, 0, 0))
    for name, comparison in comparisons.items():
        full = comparison.reference
        table.add_row(name, style="bold")
        table.add_row(" full precision", *_cells(full, full))
        for ops, measurement in comparison.quantized.items():
            shares = _agreement(comparison.agreements[ops], comparison.token_bits)
            table.add_row(f" {_variant(ops)}", *_cells(measurement, full), *shares)
    console.print(table)
    console.print(
        "peak: of memory, of a process that draws one picture after another; same: tokens of photographs and bits of "
        "emoji whose likeliest value is full precision's; KL: nats a token, and a bit"
    )
    click.echo(KL_IN_WORDS)


def _cells(measurement: Measurement, full: Measurement) -> list[str]:
    assert measurement.footprint is not None  # files of old runs lack them, these are none
    assert full.footprint is not None
    own = measurement is full
    size, peak = measurement.size_bytes, measurement.footprint.peak_bytes
    speedup = "" if own else f" ({measurement.speedup.mean:.2f}x)"
    ratios = ["", ""] if own else [f" ({size / full.size_bytes:.2f}x)", f" ({peak / full.footprint.peak_bytes:.2f}x)"]
    return [
        f"{measurement.images_per_second.mean:.2f}{speedup}",
        f"{size / 1e6:.1f}{ratios[0]}",
        f"{peak / 1e6:.0f}{ratios[1]}",
    ]


def _agreement(agreement: Agreement, bits: int | None) -> tuple[str, str]:
    if bits is None:
        return f"{agreement.top1:.1%}", f"{agreement.kl:.4f}"
    return f"{agreement.top1:.2%}", f"{agreement.kl / bits:.5f}"
