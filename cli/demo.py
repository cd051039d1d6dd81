"""`nextscale demo`: the main job on the demo model, in full precision and int8."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from nextscale.cli.options import json_file, shown_threads
from nextscale.cli.options import threads as threads_option
from nextscale.cli.progress import show_steps
from nextscale.cli.results import print_path, results_console
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.comparison import Comparison, compare, paired_sheet
from nextscale.evaluate.teacher_forced import KL_IN_WORDS, Agreement, as_json
from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.bench import Measurement
from nextscale.models.var.sources import demo_source
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import STOCK
from nextscale.runtime._scratch import remove_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._verify import verify
from nextscale.runtime.image_io import png_writer, require_writable, write_files

RECIPES = {"fp32": "fp32", "int8": "default"}
# Classes that the demo model draws so that a person can often tell them.
SHEET_CLASSES = (
    *("goldfish", "European fire salamander", "brain coral", "American lobster", "king penguin", "ladybug", "monarch"),
    *("sulphur butterfly", "bison", "African elephant", "convertible", "crane", "frying pan", "lifeboat", "school bus"),
    "snorkel",
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option(
    "--images", type=click.IntRange(2), default=32, show_default=True, help="Images to measure the agreement on."
)
@click.option("--repetitions", type=click.IntRange(2), default=10, show_default=True, help="Timed rounds.")
@click.option("--calibration-images", type=click.IntRange(1), default=64, show_default=True)
@json_file
@threads_option
def demo(
    out: Path, images: int, repetitions: int, calibration_images: int, json_path: Path | None, threads: int
) -> None:
    """Build the demo model in full precision and int8, verify and measure both, and draw a sheet.

    Bundles that an earlier run left in OUT are built again.
    """
    sheet = out / "sheet.png"
    require_writable([json_path] if json_path else [], [out / precision for precision in RECIPES])
    session = SessionOptions(threads=threads)
    console = Console(stderr=True, highlight=False, markup=False)
    full, int8 = (_built(out / precision, precision, calibration_images, session) for precision in RECIPES)
    for bundle in (full, int8):
        report = verify(bundle, session, lambda check: console.print(f"{check.name}: {printable(check.detail)}"))
        if not report.passed:
            raise NextscaleError(f"{bundle.path}: does not pass its own checks on this machine; please report it")
    comparison = compare(full, int8, images=images, repetitions=repetitions, options=session, log=console.print)
    labels = [full.class_label(name) for name in SHEET_CLASSES]
    picture = paired_sheet(full, int8, labels, session)
    writers = {sheet: png_writer(picture, {"classes": labels, "rows": list(RECIPES)})}
    if json_path:
        document = comparison.report.to_json() | {"agreement": as_json(_named(comparison.agreements))}
        text = json.dumps(document, indent=1) + "\n"
        writers[json_path] = lambda file: file.write(text.encode())
    write_files(writers)
    shown = results_console(json_path)
    _print(comparison, shown)
    print_path(sheet, err=shown.stderr)


def _built(path: Path, precision: str, calibration_images: int, session: SessionOptions) -> Bundle:
    if (path / MANIFEST_NAME).exists():
        remove_folder(path)
    recipe = load_recipe(RECIPES[precision])
    recipe = replace(recipe, calibration=replace(recipe.calibration, images=calibration_images))
    with show_steps() as progress:
        return build_bundle(
            demo_source(f"nextscale-demo-{precision}"), path, BuildOptions(recipe, session=session), progress
        )


def _named(agreements: Mapping[str, Agreement]) -> dict[str, Agreement]:
    return {"int8" if ops == STOCK else f"int8 {ops}": agreement for ops, agreement in agreements.items()}


def _peak_megabytes(measurement: Measurement) -> float:
    assert measurement.footprint is not None  # files of old runs lack it, this is none
    return measurement.footprint.peak_bytes / 1e6


def _print(comparison: Comparison, console: Console) -> None:
    machine, settings, named = comparison.report.machine, comparison.report.settings, _named(comparison.agreements)
    agreements = list(named.values())
    console.print(
        f"{machine.cpu}, {' '.join(machine.isa)}, threads {shown_threads(settings['threads'])}, "
        f"onnxruntime {comparison.report.versions['onnxruntime']}; agreement on {agreements[0].images} images, "
        "all fed the same tokens; in parentheses over full precision"
    )
    full, variants = comparison.reference, list(comparison.quantized.values())
    table = Table("", "full precision", *named)

    def add(name: str, value: Callable[[Measurement], float], digits: int) -> None:
        cells = [f"{value(m):.{digits}f} ({value(m) / value(full):.2f}x)" for m in variants]
        table.add_row(name, f"{value(full):.{digits}f}", *cells)

    speeds = [f"{m.images_per_second.mean:.2f} ({m.speedup.mean:.2f}x)" for m in variants]
    table.add_row("images/s", f"{full.images_per_second.mean:.2f}", *speeds)
    add("size, MB", lambda m: m.size_bytes / 1e6, 1)
    add("peak memory, MB", _peak_megabytes, 0)
    table.add_row("top-1 agreement", "", *(f"{agreement.top1:.1%}" for agreement in agreements))
    table.add_row("KL, nats per token", "", *(f"{agreement.kl:.4f}" for agreement in agreements))
    console.print(table)
    click.echo(KL_IN_WORDS)
