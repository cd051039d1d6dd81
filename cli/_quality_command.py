"""The commands of Tables 1 and 4, which measure the same of other recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from nextscale.cli import options
from nextscale.cli.judging_options import Judging, count_of_pictures, judging_options, picture_count
from nextscale.cli.learning_options import learning_or_simulated_options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import DEMO, RANDOM_WEIGHTS, paper_model, require_sampling, source_of
from nextscale.cli.paper_tables import print_plan, print_table, print_total
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import built_rows, planned_rows, recipe_rows
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.paper._quality import Asked, measure_quality, pictures_folder, plan_quality, require_reference
from nextscale.paper._quality_table import QualityTable, Subject, quality_table
from nextscale.paper._simulated_quality import simulate_quality, simulated_note
from nextscale.paper.paper_table import markdown
from nextscale.paper.recipe_bundles import Learning, RecipeBundles
from nextscale.paper.store import FIGURES, MANIFEST, Store
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import require_writable, write_files
from nextscale.simulation._device import Device

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
    @picture_count
    @click.option("--seed", "seeds", type=click.IntRange(0, 2**62), multiple=True, default=(0,), show_default=True,
                  help="Of the pictures; repeat for several: figures are then means with 95% intervals.")  # fmt: skip
    @click.option("--compared", type=click.IntRange(0), default=256, show_default=True,
                  help="Token maps that are compared with full precision's, for the KL; 0: none.")  # fmt: skip
    @_quick_option(quick_rows)
    @options.plan
    @options.cfg_scale
    @options.top_k
    @options.top_p
    @judging_options
    @click.option("--standard-metrics", is_flag=True,
                  help="Refuse to begin unless IS and FID are the standard ones.")  # fmt: skip
    @options.picture_batch
    @options.threads
    @options.spinning
    @options.operators
    @store_options
    @options.roundings
    @learning_or_simulated_options
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
        judging: Judging,
        standard_metrics: bool,
        batch: int,
        threads: int,
        spinning: bool,
        ops: Ops,
        ops_library: str,
        store: Store,
        roundings: Path | None,
        learning: Learning | None,
        simulated: Device | None,
        calibration_images: int | None,
        json_path: Path | None,
        markdown_path: Path | None,
        quick: bool = False,
    ) -> None:
        if quick:
            options.refuse("--quick", "rows", "images", "compared", "calibration_images", "learn")
            rows, images, compared = ",".join(quick_rows), QUICK_IMAGES, QUICK_COMPARED
            calibration_images = QUICK_CALIBRATION
        if simulated is not None:
            options.refuse("--simulated", "plan", "ops", "ops_library")
        if model.random_weights and (learning is not None or standard_metrics):
            raise click.UsageError("--random-weights does not go with --learn and --standard-metrics")
        if plan:
            options.refuse("--plan, which writes nothing,", "json_path", "markdown_path")
        if len(set(seeds)) < len(seeds):
            raise click.UsageError("--seed: the same seed twice")
        if standard_metrics:
            judging.require_standard()
        read = [path for path in (model.var, model.vae, roundings) if path is not None]
        read += [*judging.read, store.folder / MANIFEST]
        require_writable([path for path in (json_path, markdown_path) if path is not None], read)
        wanted = recipe_rows(",".join(table.rows) if rows is None else rows, calibration_images)
        session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
        real, network = judging.real_pictures(), judging.network(threads, simulated or "cpu")
        count = count_of_pictures(images, model)
        asked = Asked(count, seeds, Sampling(0, cfg_scale, top_k, top_p), compared, batch)
        notes = ["--quick: few rows, pictures and calibration images; figures of other counts differ"] if quick else []
        notes += [RANDOM_WEIGHTS] if model.random_weights else []
        with show_resumable_steps(store.folder) as steps:
            steps("reading the model")
            source = source_of(model)
            depth = table.depth(source.model_info(), model.model == DEMO)
            require_sampling(source.model_info(), cfg_scale=cfg_scale, top_k=top_k, top_p=top_p)
            if real is not None:
                require_reference(real, network, source.model_info())
            bundles = RecipeBundles(store, lambda: source, roundings, session, learning, encoder=False)
            bundles.require_model()
            if plan:
                rows_planned, left_out = planned_rows(wanted, bundles)
                work = pictures_folder(store.folder / FIGURES, asked.images)
                steps("measuring a batch of each bundle")
                planned = plan_quality(rows_planned, network, asked, work, session)
                steps.finish()
                print_plan(planned, left_out)
                return
            bundles.hold(wanted)
            figures = pictures_folder(store.figures, asked.images)
            make_folder(figures)
            if simulated is not None:
                there = [recipe for recipe in wanted if bundles.missing(recipe) is None]
                left_out = [why for why in map(bundles.missing, wanted) if why is not None]
                subject = Subject.of_recipes(source.name, source.model_info(), there)
                notes.append(simulated_note(simulated))
                measured = simulate_quality(
                    there, bundles, source, network, asked, figures, simulated, reference=real, on_images=steps
                )
            else:
                rows_built, left_out = built_rows(wanted, bundles, steps)
                subject = Subject.of_bundles(rows_built)
                steps("measuring a batch of each bundle")
                planned = plan_quality(rows_built, network, asked, figures, session)
                steps.finish()
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
            reference=judging.note,
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
