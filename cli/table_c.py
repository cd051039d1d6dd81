"""`nextscale paper table-c`: the paper's throughput table, measured on this machine."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli.model_options import CHOSEN
from nextscale.cli.options import CHECKPOINT, FiniteRange, IntegerList, json_file, operators, refuse, spinning, threads
from nextscale.cli.options import plan as plan_option
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.contender import Contender
from nextscale.measure.time_split import PARTS
from nextscale.models.sources import require_plain_name
from nextscale.models.var.presets import get_preset
from nextscale.models.var.sources import VARSource, checkpoint_source, demo_digests, demo_source, random_source
from nextscale.paper._table_c_page import SPEED_HEADERS, batches, markdown, speed_cells, with_interval
from nextscale.paper.store import Store
from nextscale.paper.table_c import FULL_PRECISION, ROWS, TableC, measure_table_c, plan_table_c
from nextscale.paper.throughput_bundles import ModelOrigin, ThroughputBundles
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import require_writable, write_files

PEERS_MODULE = "nextscale.measure.peers"
ALL_PEERS = "all"
PEERS_FOLDER = Path("out/table-c/peers")
DEMO = "demo"
QUICK_ROWS = ("fp32", "brecq-w8a8", "ours-w8a8", "default")
QUICK_ROUNDS, QUICK_CALIBRATION = 3, 2


def find_peers() -> Callable[..., list[Contender]] | None:
    """What makes the peers' contenders, `peers(source, work, threads, names)`, where nextscale has it."""
    if importlib.util.find_spec(PEERS_MODULE) is None:
        return None
    found: Callable[..., list[Contender]] | None = getattr(importlib.import_module(PEERS_MODULE), "peers", None)
    return found


class Rows(click.ParamType):
    """Recipes separated by commas: fp32,default."""

    name = "rows"

    def convert(self, value: str | list[Recipe], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        recipes = [load_recipe(name.strip()) for name in value.split(",")]
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names):
            self.fail(f"{value!r} has a row twice", param, ctx)
        return recipes


def peers_option(command: Callable[..., None]) -> Callable[..., None]:
    """--peers, --peers-at-once and --peers-folder, where there are any."""
    if find_peers() is None:
        return command
    at_once = click.option("--peers-at-once", type=click.IntRange(1), metavar="N",
                           help="Measure them after the rows, N at a time, as many as fit in memory with full "
                           "precision and default, which are measured again with each N.")  # fmt: skip
    named = click.option(
        "--peers",
        is_flag=False,
        flag_value=ALL_PEERS,
        metavar="[NAME,…]",
        help="Also measure other software, all of it or what is named (each holds the model in memory); set it up with "
        f"`python -m {PEERS_MODULE}.setup --work {PEERS_FOLDER} …`.",
    )
    folder = click.option("--peers-folder", type=click.Path(path_type=Path, file_okay=False), default=PEERS_FOLDER,
                          show_default=True, help="Where it was set up.")  # fmt: skip
    return named(at_once(folder(command)))


@click.command("table-c")
@click.option("--model", default="var-d16", show_default=True, metavar="NAME",
              help="A preset (random weights, unless --var and --vae are given), or demo.")  # fmt: skip
@click.option("--var", type=CHECKPOINT, help="The transformer's checkpoint of that preset.")
@click.option("--vae", type=CHECKPOINT, help="The VQVAE's checkpoint of that preset.")
@click.option("--weights", metavar="NAME", help="Which of several sets of weights in --var, such as ema.")
@click.option("--vae-weights", metavar="NAME", help="Which of several in --vae.")
@click.option(
    "--rows", type=Rows(), default=",".join(ROWS), show_default=True, help="Recipes to measure; fp32 is the reference."
)
@click.option(
    "--batch", "batch_sizes", type=IntegerList(), default="1", show_default=True, help="Batch sizes, such as 1,8."
)
@threads
@spinning
@operators
@click.option("--processes", type=IntegerList(), metavar="P1,P2",
              help="Also measure P processes at the same time, each on cores of its own, for each P.")  # fmt: skip
@click.option("--repetitions", type=click.IntRange(2), default=8, show_default=True,
              help="Timed rounds; with --half-width or --minutes, at most.")  # fmt: skip
@click.option("--half-width", type=FiniteRange(0, min_open=True), metavar="W",
              help="End the rounds once every ratio to full precision is known to W, such as 0.02 for 2%.")  # fmt: skip
@click.option("--minutes", type=FiniteRange(0, min_open=True), metavar="M",
              help="Begin no round later than M minutes after the first, though at least two are timed.")  # fmt: skip
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Rounds before the timed ones.")
@click.option("--quick", is_flag=True,
              help=f"The demo model, {len(QUICK_ROWS)} rows and {QUICK_ROUNDS} rounds: minutes, to see that all works.",
              )  # fmt: skip
@store_options
@click.option("--rebuild", is_flag=True, help="Build the bundles again.")
@click.option("--roundings", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with this model's learned rounding, as RECIPE.safetensors.")  # fmt: skip
@click.option(
    "--calibration-images",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Images to calibrate with, at most.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of random weights.")
@peers_option
@plan_option
@json_file
@click.option(
    "--markdown", "markdown_path", type=click.Path(path_type=Path), metavar="FILE", help="The report as Markdown."
)
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), metavar="FILE", help="A bar chart as PNG.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def table_c(
    model: str,
    var: Path | None,
    vae: Path | None,
    weights: str | None,
    vae_weights: str | None,
    rows: list[Recipe],
    batch_sizes: list[int],
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    processes: list[int] | None,
    repetitions: int,
    half_width: float | None,
    minutes: float | None,
    warmup: int,
    quick: bool,
    store: Store,
    rebuild: bool,
    roundings: Path | None,
    calibration_images: int,
    seed: int,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
    quiet: bool,
    peers: str | None = None,
    peers_at_once: int | None = None,
    peers_folder: Path = PEERS_FOLDER,
) -> None:
    """Measure the rows of the paper's Table C on this machine: images per second of the whole generation.

    Bundles are built into --store, or taken from there. Every row runs in a process of its own, in turns with the
    others. Beside it stands how far its recipe is from full precision on the demo model. With --ops auto, integer rows
    have a second row of their fused graphs, where these can run.

    \b
    nextscale paper table-c --quick
    nextscale paper table-c --threads 2 --markdown table_c.md --plot table_c.png
    nextscale paper table-c --batch 1,8 --processes 1,2,4 --json table_c.json
    """
    if quick:
        refuse("--quick", "model", "var", "vae", "rows", "repetitions", "half_width", "calibration_images")
        model, repetitions, calibration_images = DEMO, QUICK_ROUNDS, QUICK_CALIBRATION
        rows = [load_recipe(name) for name in QUICK_ROWS]
    if plan:
        refuse("--plan, which writes nothing,", "json_path", "markdown_path", "plot_path")
        refuse("--plan, which knows nothing of their time,", "peers")
    require_writable(
        [path for path in (json_path, markdown_path, plot_path) if path is not None],
        [*(path for path in (var, vae, roundings) if path is not None), store.folder],
    )
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise NextscaleError('--plot needs matplotlib, which is not installed: pip install "nextscale[eval]"')
    if min(batch_sizes) < 1:
        raise click.BadParameter("expected images at a time of 1 or more", param_hint="--batch")
    session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    origin = _origin(model, var, vae, seed, weights, vae_weights)
    shown = _Steps(console)
    bundles = ThroughputBundles(origin, store, roundings, calibration_images, session)
    if plan:
        shown("measuring a batch of each bundle")
        planned = plan_table_c(
            [bundles.planned(recipe, rebuild) for recipe in rows],
            bundles.planned(load_recipe(FULL_PRECISION), rebuild),
            batches=batch_sizes,
            processes=processes or (),
            options=session,
            repetitions=repetitions,
            warmup=warmup,
        )
        print_plan(planned)
        return
    built, operations = bundles.build(rows, shown, rebuild)
    contenders = []
    if peers is not None:
        make_peers = find_peers()
        assert make_peers is not None
        names = None if peers == ALL_PEERS else peers.split(",")
        contenders = make_peers(origin.load(), peers_folder, threads, names)
    table = measure_table_c(
        built,
        operations,
        origin.description,
        peers=contenders,
        peers_at_once=peers_at_once,
        batches=batch_sizes,
        processes=processes or (),
        options=session,
        repetitions=repetitions,
        half_width=half_width,
        minutes=minutes,
        warmup=warmup,
        log=console.print,
    )
    writers = table_writers(json_path, table.to_json(), markdown_path, markdown(table))
    if plot_path is not None:
        from nextscale.paper._table_c_plot import plot_table_c

        writers[plot_path] = lambda file: plot_table_c(file, table)
    write_files(writers)
    _print(table, results_console(json_path, markdown_path, plot_path))


class _Steps:
    """Each step of a build as a line."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, ""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if step != self.last:
            self.last = step
            self.console.print(step)


def _origin(
    model: str, var: Path | None, vae: Path | None, seed: int, weights: str | None, vae_weights: str | None
) -> ModelOrigin:
    if (var is None) != (vae is None):
        raise click.UsageError("--var and --vae go together")
    if var is None:
        refuse("a model without --var and --vae", *CHOSEN)
    if model == DEMO:
        if var is not None:
            raise click.UsageError("--model demo does not go with --var")
        return ModelOrigin({"name": DEMO, **demo_digests()}, lambda: demo_source(DEMO), random=False)
    name = get_preset(model).name
    if var is not None and vae is not None:
        files, called = {"var": file_sha256(var), "vae": file_sha256(vae)}, require_plain_name(var.stem)
        given = {"weights": weights, "vae_weights": vae_weights}
        named = {option: choice for option, choice in given.items() if choice is not None}

        def source() -> VARSource:
            return checkpoint_source(called, var, vae, name, weights=weights, vae_weights=vae_weights)

        return ModelOrigin({"name": name, **files, **named}, source, random=False)
    description = {"name": name, "weights": "random", "seed": seed}
    return ModelOrigin(description, lambda: random_source(name, name, seed), random=True)


def _print(table: TableC, console: Console) -> None:
    console.soft_wrap = True
    console.width = max(console.width, 140) if not console.is_terminal else console.width
    machine, settings = table.machine, table.settings
    isa = " ".join(machine.isa) or "no known ISA flags"
    console.print(f"{machine.cpu}, {machine.logical_cpus} logical CPUs, {isa}")
    most = "at most " if settings["half_width"] is not None or settings["minutes"] is not None else ""
    console.print(
        f"threads {settings['threads'] or 'one per core'}, {most}{settings['repetitions']} interleaved rounds, "
        f"onnxruntime {table.versions['onnxruntime']}, nextscale {table.versions['nextscale']}"
    )
    for batch in batches(table):
        console.print(_speed_table(table, batch))
    for row in table.rows:
        if row.split is not None and row.roofline_share is not None:
            shares = ", ".join(f"{part} {row.split.parts[part] / row.split.total:.0%}" for part in PARTS)
            console.print(f"{row.method}: {shares}; {row.roofline_share:.0%} of its roofline")
    for row in table.rows:
        if row.notes:
            console.print(f"{row.method}: {'; '.join(row.notes)}")
    for group in table.peer_groups:
        for lead in group.leads:
            low, high = lead.ratio.low, lead.ratio.high
            console.print(
                f"{lead.name} over {lead.other}, batch {lead.batch}: {lead.ratio.mean:.2f} [{low:.2f}, {high:.2f}]"
            )
    for failure in table.failures.values():
        console.print(f"left out: {failure}")
    for warning in table.warnings():
        console.print(f"warning: {warning}")
    for speed in table.machine_speeds:
        console.print(
            f"{table.machine_recipe}, {speed.processes} x {speed.threads} threads, batch {speed.batch}: "
            f"{with_interval(speed.images_per_second)} images/s"
        )
    console.print(table.recommendation)


def _speed_table(table: TableC, batch: int) -> Table:
    shown = Table(box=SIMPLE, title=f"{table.model.get('name', '')}, batch {batch}", title_justify="left")
    shown.add_column("method", no_wrap=True)
    for header in ("W/A", *SPEED_HEADERS):
        shown.add_column(header, justify="right", no_wrap=True)
    for row in table.rows:
        if any(speed.batch == batch for speed in row.speeds):
            shown.add_row(row.method, row.bits, *speed_cells(row, batch))
    return shown
