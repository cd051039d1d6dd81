"""`nextscale bench`: bundles against each other on this machine."""

import json
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.results import results_console
from nextscale.measure.bench import BenchReport, Measurement
from nextscale.measure.bench import bench as run_bench
from nextscale.measure.bundle_contender import FORMS
from nextscale.measure.statistics import Interval
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._machine import Machine
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import require_writable, write_files


@click.command()
@click.argument("bundle_dirs", metavar="DIR...", type=options.BUNDLE, nargs=-1, required=True)
@click.option(
    "--batch", "batches", type=options.IntegerList(), default="1", show_default=True, help="Batch sizes, such as 1,4."
)
@click.option(
    "--form", "forms", type=click.Choice(list(FORMS)), multiple=True, help="Repeat for several.  [default: all]"
)
@options.threads
@options.spinning
@options.operators
@click.option("--repetitions", type=int, default=10, show_default=True, help="Timed rounds.")
@click.option("--warmup", type=int, default=1, show_default=True, help="Rounds before the timed ones.")
@options.json_file
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def bench(
    bundle_dirs: tuple[Path, ...],
    batches: list[int],
    forms: tuple[str, ...],
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    repetitions: int,
    warmup: int,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Measure the bundles in DIR... in turns, so that a drifting machine slows them all alike.

    Each bundle and batch size runs in a process of its own, whose load time and peak memory are reported.
    Figures are means with 95% confidence intervals; speedups are relative to the first bundle. With --ops auto, the
    stock graphs of each bundle and, where they can run, its fused ones.
    """
    bundles = [Bundle.open(path) for path in bundle_dirs]
    require_writable([json_path] if json_path else [], [path for bundle in bundles for path in bundle.paths()])
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
    report = run_bench(
        bundles,
        batches=batches,
        forms=forms or tuple(FORMS),
        options=SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library),
        repetitions=repetitions,
        warmup=warmup,
        log=console.print,
    )
    if json_path:
        text = json.dumps(report.to_json(), indent=1) + "\n"
        write_files({json_path: lambda file: file.write(text.encode())})
    _print(report, results_console(json_path))


def _print(report: BenchReport, console: Console) -> None:
    console.width = max(console.width, 120) if not console.is_terminal else console.width
    machine, versions = report.machine, report.versions
    console.print(
        f"{machine.cpu}, {machine.logical_cpus} logical CPUs, {' '.join(machine.isa) or 'no known ISA flags'}: "
        f"{_exactness(machine)}"
    )
    console.print(
        f"threads {options.shown_threads(report.settings['threads'])}, "
        f"{report.settings['repetitions']} interleaved repetitions, "
        f"onnxruntime {versions['onnxruntime']}, nextscale {versions['nextscale']}"
    )
    console.print(_table(report.measurements))
    for measurement in report.measurements:
        if measurement.decoder_seconds:
            stages = " ".join(f"{seconds.mean * 1e3:.1f}" for seconds in measurement.stage_seconds)
            decoder = f"{measurement.decoder_seconds.mean * 1e3:.1f}"
            console.print(
                f"{measurement.bundle}, batch {measurement.batch}: stages {stages}, decoder {decoder} ms per image"
            )


def _exactness(machine: Machine) -> str:
    """What integer products are here."""
    if machine.has_int8_dot:
        return "u8 x s8 products are exact"
    if machine.saturates:
        return "u8 x s8 products saturate, except in bundles built with --reduce-range"
    return "whether u8 x s8 products are exact is not known"


def _table(measurements: tuple[Measurement, ...]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("bundle", overflow="fold")
    table.add_column("operators", no_wrap=True)
    table.add_column("form", no_wrap=True)
    for name in ("batch", "images/s", "s per image", "speedup", "load s", "peak MB", "size MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in measurements:
        footprint = item.footprint
        table.add_row(
            f"{item.bundle} ({item.recipe})",
            item.ops,
            item.form,
            str(item.batch),
            f"{item.images_per_second.mean:.3g}",
            _shown(item.image_seconds),
            _shown(item.speedup),
            f"{footprint.load_seconds:.2f}" if footprint else "",
            f"{footprint.peak_bytes / 1e6:.0f}" if footprint else "",
            f"{item.size_bytes / 1e6:.1f}",
        )
    return table


def _shown(interval: Interval) -> str:
    """The mean and half of the interval's width in percent of it."""
    return f"{interval.mean:.3g} ±{(interval.high - interval.low) / 2 / interval.mean:.1%}"
