"""The commands of Tables 1 and 4, which measure the same of other recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import DEMO, RANDOM_WEIGHTS, paper_model, require_sampling, source_of
from nextscale.cli.paper_tables import print_table
from nextscale.cli.progress import Steps, show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import reference_first, with_fewer_images
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.inception_network import InceptionNetwork
from nextscale.evaluate.reference_statistics import Reference, read_demo_reference, read_reference
from nextscale.graph_passes.recipe import Recipe
from nextscale.paper._quality import Asked, PlannedRow, measure_quality, plan_quality, require_reference
from nextscale.paper._quality_table import QualityTable, Subject, quality_table
from nextscale.paper._simulated_quality import simulate_quality, simulated_note
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.paper_table import markdown
from nextscale.paper.recipe_bundles import FULL_PRECISION, Learning, RecipeBundle, RecipeBundles
from nextscale.paper.store import MANIFEST, Store
from nextscale.paper.table_3 import in_words
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_writable, write_files
from nextscale.simulation._device import Device, require_device
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

Command = TypeVar("Command", bound=Callable[..., object])
QUICK_IMAGES, QUICK_COMPARED, QUICK_CALIBRATION = 500, 32, 32


def quality_command(table: QualityTable, quick_rows: tuple[str, ...], help_text: str) -> click.Command:
    """`nextscale paper table-N`.

    Args:
        table: the paper's.
        quick_rows: of `--quick`, none whose rounding has to be learned; () for a table without.
        help_text: what the command does.
    """

    @click.command(f"table-{table.table}", help=help_text)
    @paper_model
    @click.option("--rows", metavar="NAME,…",
                  help="Recipes; one of them full precision.  [default: the paper's, and default at the same bits]",
                  )  # fmt: skip
    @click.option("--images", type=click.IntRange(2),
                  help="Pictures of each row and seed.  [default: 5000; of official models 50000]")  # fmt: skip
    @click.option("--seed", "seeds", type=click.IntRange(0, 2**62), multiple=True, default=(0,), show_default=True,
                  help="Of the pictures; repeat for several: figures are then means with 95% intervals.")  # fmt: skip
    @click.option("--compared", type=click.IntRange(0), default=256, show_default=True,
                  help="Token maps that are compared with full precision's, for the KL; 0: none.")  # fmt: skip
    @_quick_option(quick_rows)
    @click.option("--plan", is_flag=True, help="Measure a batch, print how long all will take, and stop.")
    @options.cfg_scale
    @options.top_k
    @options.top_p
    @click.option("--inception-weights", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
                  help="Use Inception v3 with torch-fidelity's weights, for standard FID and IS.")  # fmt: skip
    @click.option("--reference", metavar="demo|none|FILE.npz",
                  help="Statistics of real pictures.  [default: those of the demo model's photographs, or none]",
                  )  # fmt: skip
    @click.option("--standard-metrics", is_flag=True,
                  help="Refuse to begin unless IS and FID are the standard ones.")  # fmt: skip
    @click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Pictures at a time.")
    @options.threads
    @options.spinning
    @options.operators
    @store_options
    @click.option("--roundings", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
                  help="Folder with the model's learned rounding, as RECIPE.safetensors.")  # fmt: skip
    @click.option("--learn", is_flag=True, help="Learn the rounding that is not there, which takes hours on a CPU.")
    @click.option("--iterations", type=click.IntRange(1), default=ReconstructionSettings.iterations, show_default=True,
                  help="With --learn: steps a unit.")  # fmt: skip
    @click.option("--learning-batch", type=click.IntRange(1), default=ReconstructionSettings.batch_size,
                  show_default=True, help="With --learn: images per step.")  # fmt: skip
    @click.option("--simulated", is_flag=True,
                  help="Draw in torch what the bundles' graphs would, with a float decoder, on --device: minutes on a "
                  "GPU.")  # fmt: skip
    @click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                  help="With --learn and --simulated: where to compute.")  # fmt: skip
    @options.calibration_images
    @options.json_file
    @options.markdown_file
    def command(
        model: VAROptions,
        rows: str | None,
        images: int | None,
        seeds: tuple[int, ...],
        compared: int,
        plan: bool,
        cfg_scale: float,
        top_k: int | None,
        top_p: float,
        inception_weights: Path | None,
        reference: str | None,
        standard_metrics: bool,
        batch: int,
        threads: int,
        spinning: bool,
        ops: Ops,
        ops_library: str,
        store: Store,
        roundings: Path | None,
        learn: bool,
        iterations: int,
        learning_batch: int,
        simulated: bool,
        device: Device,
        calibration_images: int | None,
        json_path: Path | None,
        markdown_path: Path | None,
        quick: bool = False,
    ) -> None:
        is_demo = model.model == DEMO
        if quick:
            options.refuse("--quick", "rows", "images", "compared", "calibration_images", "learn")
            rows, images, compared = ",".join(quick_rows), QUICK_IMAGES, QUICK_COMPARED
            calibration_images = QUICK_CALIBRATION
        if not learn:
            options.refuse("a table without --learn", "iterations", "learning_batch")
        if not (learn or simulated):
            options.refuse("a table without --learn and --simulated", "device")
        if simulated:
            options.refuse("--simulated", "plan", "ops", "ops_library")
            require_device(device)
        if model.random_weights and (learn or standard_metrics):
            raise click.UsageError("--random-weights does not go with --learn and --standard-metrics")
        if plan:
            options.refuse("--plan, which writes nothing,", "json_path", "markdown_path")
        if len(set(seeds)) < len(seeds):
            raise click.UsageError("--seed: the same seed twice")
        reference = reference or (DEMO if is_demo and inception_weights is None else "none")
        if standard_metrics and (inception_weights is None or reference in (DEMO, "none")):
            raise click.UsageError(
                "--standard-metrics: IS and FID need --inception-weights, and --reference with Inception's statistics "
                "of real pictures"
            )
        read = [path for path in (model.var, model.vae, inception_weights, roundings) if path is not None]
        read += [] if reference in (DEMO, "none") else [Path(reference)]
        read.append(store.folder / MANIFEST)
        require_writable([path for path in (json_path, markdown_path) if path is not None], read)
        wanted = _recipes(",".join(table.rows) if rows is None else rows, calibration_images)
        learning = None
        if learn:
            require_device(device)
            learning = Learning(ReconstructionSettings(iterations, learning_batch), device)
        session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
        real = real_pictures(reference)
        where = device if simulated else "cpu"
        network: ImageNetwork = (
            InceptionNetwork(inception_weights, where) if inception_weights else FeatureNetwork(where, threads)
        )
        asked = Asked(
            images or (5000 if is_demo else 50000), seeds, Sampling(0, cfg_scale, top_k, top_p), compared, batch
        )
        notes = ["--quick: few rows, pictures and calibration images; figures of other counts differ"] if quick else []
        notes += [RANDOM_WEIGHTS] if model.random_weights else []
        with show_resumable_steps(store.folder) as steps:
            steps("reading the model")
            source = source_of(model)
            depth = table.depth(source.model_info(), is_demo)
            require_sampling(source.model_info(), cfg_scale=cfg_scale, top_k=top_k, top_p=top_p)
            if real is not None:
                require_reference(real, network, source.model_info())
            bundles = RecipeBundles(store, lambda: source, roundings, session, learning, encoder=False)
            bundles.require_model()
            bundles.hold(wanted)
            figures = store.figures / f"pictures-{asked.images}"
            make_folder(figures)
            if simulated:
                there = [recipe for recipe in wanted if bundles.missing(recipe) is None]
                left_out = [why for why in map(bundles.missing, wanted) if why is not None]
                subject = Subject.of_recipes(source.name, source.model_info(), there)
                notes.append(simulated_note(device))
                measured = simulate_quality(
                    there, bundles, source, network, asked, figures, device, reference=real, on_images=steps
                )
            else:
                rows_built, unbuilt, left_out = _bundles(wanted, bundles, plan, steps)
                subject = Subject.of_bundles(rows_built)
                steps("measuring a batch of each row")
                planned = plan_quality(rows_built, unbuilt, network, asked, figures, session)
                steps.finish()
                if plan:
                    _print_plan(planned, left_out)
                    return
                print_total(planned)
                measured = measure_quality(
                    rows_built, network, asked, figures, reference=real, options=session, on_images=steps
                )
        found = quality_table(
            table,
            measured,
            subject,
            network,
            asked,
            depth,
            reference=in_note(reference),
            left_out=left_out,
            notes=notes,
        )
        write_files(table_writers(json_path, found.to_json(), markdown_path, markdown(found)))
        print_table(found, results_console(json_path, markdown_path))

    return command


def _quick_option(rows: tuple[str, ...]) -> Callable[[Command], Command]:
    if not rows:
        return lambda command: command
    return click.option(
        "--quick",
        is_flag=True,
        help=f"{len(rows)} rows that need no learning, {QUICK_IMAGES} pictures each: minutes, to see that all works.",
    )


def _recipes(text: str, calibration_images: int | None) -> list[Recipe]:
    names = [part.strip() for part in text.split(",")]
    return reference_first([with_fewer_images(paper_recipe(name), calibration_images) for name in names], text)


def real_pictures(name: str) -> Reference | None:
    """What --reference names."""
    if name == "none":
        return None
    return read_demo_reference() if name == DEMO else read_reference(Path(name))


def in_note(reference: str) -> str | None:
    """What a note calls it; None of none."""
    if reference == "none":
        return None
    return "the demo model's validation photographs" if reference == DEMO else printable(Path(reference).name)


def _bundles(
    wanted: Sequence[Recipe], store: RecipeBundles, plan: bool, steps: Steps
) -> tuple[list[RecipeBundle], list[Recipe], list[str]]:
    """The bundles; recipes of those that a plan does not build; and lines on rows that cannot be built."""
    bundles, unbuilt, left_out = list[RecipeBundle](), list[Recipe](), list[str]()
    for recipe in wanted:
        there = store.built(recipe)
        missing = None if there is not None else store.missing(recipe)
        if missing is not None:
            left_out.append(missing)
        elif there is None and plan and recipe.name != FULL_PRECISION:
            unbuilt.append(recipe)
        else:
            bundles.append(there or store.build(recipe, steps))
    return bundles, unbuilt, left_out


def print_total(planned: Sequence[PlannedRow]) -> None:
    """How long drawing and comparing will take."""
    seconds = in_words(sum(row.seconds for row in planned))
    Console(stderr=True, highlight=False, markup=False).print(f"{len(planned)} rows: about {seconds}")


def _print_plan(planned: Sequence[PlannedRow], left_out: Sequence[str]) -> None:
    shown = Table("row", "pictures left", "time", "MB", box=SIMPLE)
    for row in planned:
        time = in_words(row.seconds) + ("" if row.measured else " (at full precision's speed)")
        shown.add_row(row.name, str(row.left), time, f"{row.bytes / 1e6:.0f}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(shown)
    seconds, bytes_ = (sum(getattr(row, name) for row in planned) for name in ("seconds", "bytes"))
    console.print(
        f"in all: {in_words(seconds)} and {bytes_ / 1e9:.1f} GB, measured by one batch of each bundle that is there"
    )
    unbuilt = [row.name for row in planned if not row.measured]
    if unbuilt:
        console.print(f"and the time to build {len(unbuilt)} bundles: {', '.join(unbuilt)}")
    for line in left_out:
        console.print(printable(f"left out: {line}"))
