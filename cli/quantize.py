"""`nextscale quantize`: any ONNX model into an integer one, with a report of what was taken and why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.progress import show_steps
from nextscale.cli.results import results_console
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_absent, require_writable, write_files

if TYPE_CHECKING:
    from nextscale.foreign.report import Line, Report

# Of the operators that lose most, and of the reasons why others are left.
SHOWN = 5


@click.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .onnx file to make.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="NPZ|DIR",
    help="An .npz with an array for each input, samples along its first axis; or a folder of such files.",
)
@click.option(
    "--random-calibration",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Calibrate on N random samples instead: for speed alone, what comes out is worth nothing else.",
)
@click.option("--recipe", default="static-w8a8", show_default=True, metavar="NAME|FILE", help="How to quantize.")
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True, help="To time both models in; 0: none.")
@options.threads
@options.json_file
def quantize(
    model: Path,
    out: Path,
    calibration: Path | None,
    random_calibration: int | None,
    recipe: str,
    rounds: int,
    threads: int,
    json_path: Path | None,
) -> None:
    """Make the linear layers and attentions of MODEL.onnx integer, and say what became of each.

    The result runs in ONNX Runtime as it is, from any language. Convolutions and everything else stay as they are.

    \b
    nextscale quantize vit.onnx --calibration samples.npz --out vit_int8.onnx
    nextscale quantize vit.onnx --calibration samples.npz --recipe rtn-w8a8 --out vit_int8.onnx --json report.json
    """
    from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model
    from nextscale.foreign.written_model import write_model

    if (calibration is None) == (random_calibration is None):
        raise click.UsageError("give --calibration, or --random-calibration for speed alone")
    if out.suffix != ".onnx":
        raise click.UsageError(f"--out {out}: expected a name that ends in .onnx")
    if rounds == 1:
        raise click.BadParameter("1: expected 0, or at least 2, between which times differ", param_hint="--rounds")
    require_absent(out)
    read = [model, *([] if calibration is None else [calibration, *calibration.glob("*.npz")])]
    read += [Path(recipe)] if recipe.endswith(".toml") else []
    require_writable([path for path in (out, json_path) if path is not None], read)
    source = read_model(model)
    with show_steps() as steps:
        session = SessionOptions(threads=threads)
        integer, report = quantize_model(
            source, calibration or random_calibration or 0, recipe, QuantizeOptions(session, rounds, progress=steps)
        )
        steps("writing")
        if json_path is not None:
            text = json.dumps(report.to_json(), indent=1) + "\n"
            write_files({json_path: lambda file: file.write(text.encode())})
        write_model(integer, out)
    console = results_console(json_path)
    _print(report, console)
    console.print(printable(f"{out}: {report.recipe}, {report.integer_bytes / 1e6:.1f} MB"))


def _print(report: Report, console: Console) -> None:
    console.soft_wrap = True
    for note in report.notes:
        console.print(printable(note))
    console.print(f"calibrated on {printable(report.samples)}; normalizing changed outputs by {report.normalized:.2g}")
    counts = Table("operators", "integer", "left", "why", box=SIMPLE)
    for kind in dict.fromkeys(line.kind for line in report.lines):
        of_kind = [line for line in report.lines if line.kind == kind]
        left = [line for line in of_kind if line.refused is not None]
        reasons = dict.fromkeys(str(line.refused) for line in left)
        why = "; ".join([*reasons][:SHOWN]) + ("; …" if len(reasons) > SHOWN else "")
        counts.add_row(kind, str(len(of_kind) - len(left)), str(len(left)), printable(why))
    console.print(counts)
    if report.fallen:
        names = ", ".join(f"{line.name} ({'+'.join(line.kernels) or 'no kernel'})" for line in report.fallen[:SHOWN])
        console.print(printable(f"{len(report.fallen)} of them multiply in float all the same: {names}"))
    outputs = Table("output", "mean difference", "largest", "relative", "SQNR", box=SIMPLE)
    for name, lost in report.outputs.items():
        relative, sqnr = f"{lost.error.relative:.2%}", f"{lost.error.sqnr:.1f} dB"
        outputs.add_row(printable(name), f"{lost.mean:.3g}", f"{lost.largest:.3g}", relative, sqnr)
    console.print(outputs)
    if report.not_compared:
        console.print(
            printable(f"not compared, since they have other shapes or are no tensors: {', '.join(report.not_compared)}")
        )
    _print_worst(report.worst(SHOWN), console)
    size = f"{report.float_bytes / 1e6:.1f} to {report.integer_bytes / 1e6:.1f} MB"
    if report.speed is None:
        console.print(size)
        return
    speed = report.speed
    low, high = speed.ratio.low, speed.ratio.high
    console.print(
        f"{size}; {speed.float_seconds * 1e3:.1f} to {speed.integer_seconds * 1e3:.1f} ms with {report.threads} "
        f"threads, {speed.ratio.mean:.2f} [{low:.2f}, {high:.2f}] times as fast"
    )


def _print_worst(worst: list[Line], console: Console) -> None:
    if not worst:
        return
    table = Table("lose most by themselves", "relative", "SQNR", box=SIMPLE)
    for line in worst:
        assert line.error is not None
        table.add_row(printable(line.name), f"{line.error.relative:.2%}", f"{line.error.sqnr:.1f} dB")
    console.print(table)
    layers = [line.name for line in worst if line.kind == "linear layer"]
    if layers:
        console.print(f'the first to leave in float, in a recipe file: [layers] {json.dumps(layers[0])} = "float"')
