"""`nextscale quantize`: any ONNX model into an integer one, with a report of what was taken and why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.progress import show_steps
from nextscale.cli.results import results_console
from nextscale.foreign.learning import BlockLearning
from nextscale.report._quantized_page import quantized_page
from nextscale.runtime._outputs import is_open_file
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_absent, require_writable, write_files

if TYPE_CHECKING:
    import onnx_ir as ir

    from nextscale.foreign.compare import Difference
    from nextscale.foreign.report import Line, Report
    from nextscale.foreign.suggestion import Suggestion
    from nextscale.runtime._operators import Ops

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
@click.option(
    "--ops",
    type=click.Choice(["stock", "fused"]),
    default="stock",
    show_default=True,
    help="fused: operators of nextscale-ops where they fit; the model needs their library then (docs/fused.md).",
)
@options.reduce_range_option
@click.option(
    "--leave",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Leave N operators in float: those that cost the outputs most.",
)
@click.option(
    "--iterations",
    type=click.IntRange(0),
    default=BlockLearning.iterations,
    show_default=True,
    metavar="N",
    help="Of recipes with learned rounding: steps for each residual block; 0: each layer is rounded by itself.",
)
@click.option("--rounds", type=click.IntRange(0), default=5, show_default=True, help="To time both models in; 0: none.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE.html|FILE.json",
    help="What became of each operator: a page, or all figures as JSON.",
)
@options.threads
def quantize(
    model: Path,
    out: Path,
    calibration: Path | None,
    random_calibration: int | None,
    recipe: str,
    ops: Ops,
    reduce_range: bool,
    leave: int,
    iterations: int,
    rounds: int,
    report_path: Path | None,
    threads: int,
) -> None:
    """Make the linear layers, convolutions and attentions of MODEL.onnx integer, and say what became of each.

    The result runs in ONNX Runtime as it is, from any language. Everything else stays as it is.

    \b
    nextscale quantize vit.onnx --calibration samples.npz --out vit_int8.onnx
    nextscale quantize vit.onnx --calibration samples.npz --recipe rtn-w8a8 --out vit_int8.onnx --report report.html
    """
    from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model

    if (calibration is None) == (random_calibration is None):
        raise click.UsageError("give --calibration, or --random-calibration for speed alone")
    if out.suffix != ".onnx":
        raise click.UsageError(f"--out {out}: expected a name that ends in .onnx")
    if report_path is not None and not (_is_page(report_path) or _is_json(report_path)):
        raise click.UsageError(f"--report {report_path}: expected a name that ends in .html or .json")
    if rounds == 1:
        raise click.BadParameter("1: expected 0, or at least 2, between which times differ", param_hint="--rounds")
    require_absent(out)
    read = [model, *([] if calibration is None else [calibration, *calibration.glob("*.npz")])]
    read += [Path(recipe)] if recipe.endswith(".toml") else []
    require_writable([path for path in (out, report_path) if path is not None], read)
    source = read_model(model)
    with show_steps() as steps:
        session = SessionOptions(threads=threads, ops=ops)
        integer, report = quantize_model(
            source,
            calibration or random_calibration or 0,
            recipe,
            QuantizeOptions(
                session,
                reduce_range=reduce_range,
                leave=leave,
                learning=BlockLearning(iterations),
                rounds=rounds,
                progress=steps,
            ),
        )
        steps("writing")
        _write(integer, out, report, report_path, model.name)
    console = results_console(report_path)
    _print(report, console)
    console.print(printable(f"{out}: {report.recipe}, {report.integer_bytes / 1e6:.1f} MB"))


def _is_page(path: Path) -> bool:
    return path.suffix.lower() == ".html"


def _is_json(path: Path) -> bool:
    """What stands for an open file, such as /dev/stdout, has no suffix and gets what a program can read."""
    return path.suffix.lower() == ".json" or is_open_file(path)


def _write(integer: ir.Model, out: Path, report: Report, report_path: Path | None, name: str) -> None:
    """Write the model and the report on it, both or neither."""
    from nextscale.foreign.written_model import write_model

    if report_path is None:
        write_model(integer, out)
        return
    plain = report.to_json()
    text = quantized_page(plain, name) if _is_page(report_path) else json.dumps(plain, indent=1) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode())
        file.flush()  # on a disk that is full, before the model is there
        write_model(integer, out)

    # It moves the report to its place when all is written.
    write_files({report_path: write})


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
    if report.outputs:
        _print_outputs(report.outputs, console)
    if report.not_compared:
        console.print(
            printable(f"not compared, since they have other shapes or are no tensors: {', '.join(report.not_compared)}")
        )
    _print_worst(report.worst(SHOWN), console)
    if report.suggestion is not None:
        _print_suggestion(report.suggestion, console)
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


def _print_outputs(outputs: Mapping[str, Difference], console: Console) -> None:
    table = Table("output", "mean difference", "largest", "relative", "SQNR", box=SIMPLE)
    for name, lost in outputs.items():
        relative, sqnr = f"{lost.error.relative:.2%}", f"{lost.error.sqnr:.1f} dB"
        table.add_row(printable(name), f"{lost.mean:.3g}", f"{lost.largest:.3g}", relative, sqnr)
    console.print(table)


def _print_worst(worst: list[Line], console: Console) -> None:
    if not worst:
        return
    table = Table("cost the outputs most", "own error", "outputs' error", box=SIMPLE)
    for line in worst:
        assert line.error is not None
        assert line.effect is not None
        table.add_row(printable(line.name), f"{line.error.relative:.2%}", f"{line.effect.relative:.3%}")
    console.print(table)


def _print_suggestion(suggestion: Suggestion, console: Console) -> None:
    """What a few operators in float would bring."""
    lost = ", ".join(f"{found.error.relative:.2%} in {name}" for name, found in suggestion.outputs.items())
    fast = "" if suggestion.ratio is None else f" and is {suggestion.ratio.mean:.2f} times as fast as float"
    console.print(printable(f"with these lines in a recipe file the model loses {lost or 'less'}{fast}:"))
    console.print("[layers]")
    for name in suggestion.names:
        console.print(printable(f'{json.dumps(name, ensure_ascii=False)} = "float"'))
