"""`nextscale paper table-b`: what shift-and-sum costs at three thetas, and what pictures gain by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from nextscale.calib_data.attention_scores import ScoreStatistics
from nextscale.cli import options
from nextscale.cli.judging_options import Judging, count_of_pictures, judging_options
from nextscale.cli.learning_options import learning_options
from nextscale.cli.model_options import VAROptions
from nextscale.cli.paper_models import DEMO, RANDOM_WEIGHTS, paper_model, require_sampling, source_of
from nextscale.cli.paper_tables import print_plan, print_table
from nextscale.cli.progress import Steps, show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.table_rows import built_rows
from nextscale.evaluate.generated_statistics import Sampling
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.reference_statistics import Reference
from nextscale.graph_passes.layer_facts import StageFacts
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.layers import facts_of
from nextscale.paper._estimated_time import SCORING_IMAGES, image_seconds, in_words
from nextscale.paper._plan import OBSERVED, PlannedStep, row_step
from nextscale.paper._quality import Asked, measure_quality, pictures_folder, plan_quality, require_reference
from nextscale.paper._quality_table import Subject, quality_table
from nextscale.paper._table_b_quality import (
    BASELINE,
    METHODS,
    QUALITY,
    SCORE_IMAGES,
    TableB,
    bundles_at,
    choices,
    kept_scores,
    markdown,
    rounding_note,
    row_name,
    row_recipe,
    scores_file,
    with_roundings,
)
from nextscale.paper.paper_recipes import paper_recipe, with_fewer_images
from nextscale.paper.paper_table import PaperTable
from nextscale.paper.recipe_bundles import (
    FULL_PRECISION,
    Learning,
    RecipeBundle,
    RecipeBundles,
    UnbuiltBundle,
    model_name,
)
from nextscale.paper.store import FIGURES, Store
from nextscale.paper.table_b import costs
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._operators import Ops
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._wording import counted
from nextscale.runtime.image_io import require_writable, write_files


@dataclass(frozen=True)
class _Pictures:
    """What part (b) draws and measures.

    Attributes:
        asked: how much.
        network: of features.
        real: pictures; None: none.
        calibration_images: at most so many for each row.
    """

    asked: Asked
    network: ImageNetwork
    real: Reference | None
    calibration_images: int | None


@dataclass(frozen=True)
class _Read:
    """The model, before anything is built.

    Attributes:
        bundles: its bundles.
        model, facts: its shape.
        depth: of the paper's model beside it.
        recipes: of METHODS; none without pictures.
        lent: whether its weights are random, so that attention is lent and weights are rounded to nearest.
    """

    bundles: RecipeBundles
    model: ModelInfo
    facts: StageFacts
    depth: int
    recipes: Mapping[str, Recipe]
    lent: bool


@dataclass(frozen=True)
class _Built:
    """What is measured.

    Attributes:
        original: full precision.
        model, facts: its shape.
        scores: the attention that its tokens draw.
        depth: of the paper's model beside it.
        rows: the bundles of METHODS that are there.
        left_out: lines on those that are not.
        notes: on the rounding of those that are.
    """

    original: RecipeBundle
    model: ModelInfo
    facts: StageFacts
    scores: ScoreStatistics
    depth: int
    rows: list[RecipeBundle]
    left_out: list[str]
    notes: list[str]


@click.command("table-b")
@paper_model
@click.option("--images", type=click.IntRange(0),
              help="Pictures of each row; 0: the costs alone.  [default: 5000; of official models 50000]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True,
              help="Of the pictures, and of the images that attention is observed on.")  # fmt: skip
@click.option("--compared", type=click.IntRange(0), default=256, show_default=True,
              help="Token maps that are compared with full precision's, for the KL; 0: none.")  # fmt: skip
@options.cfg_scale
@options.top_k
@options.top_p
@judging_options
@options.picture_batch
@options.threads
@options.spinning
@options.operators
@store_options
@click.option("--roundings", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with the model's learned rounding: brecq-w4a6.safetensors, shift-and-sum-w4a6.safetensors, "
              "and the latter in folders theta-0.05, theta-0.1 and theta-0.2 if it was learned with these thetas, too.",
              )  # fmt: skip
@learning_options
@options.calibration_images
@options.plan
@options.json_file
@options.markdown_file
def table_b(
    model: VAROptions,
    images: int | None,
    seed: int,
    compared: int,
    cfg_scale: float,
    top_k: int | None,
    top_p: float,
    judging: Judging,
    batch: int,
    threads: int,
    spinning: bool,
    ops: Ops,
    ops_library: str,
    store: Store,
    roundings: Path | None,
    learning: Learning | None,
    calibration_images: int | None,
    plan: bool,
    json_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Count what shift-and-sum adds to memory and operations at theta 0.05, 0.1 and 0.2, and measure pictures with it.

    Part (a) counts attentive tokens on images that the model samples, in minutes. Part (b) measures pictures as
    table-1 does, of rows whose learned rounding is in --roundings, or with --learn of all.

    The model is the demo model, unless --var and --vae name a VAR-d16, the paper's. Bundles are built into --store;
    after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-b --images 0
    nextscale paper table-b --roundings benchmarks/roundings --markdown table_b.md
    """
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path")
    if images == 0:
        options.refuse("--images 0, without pictures,", "compared", "cfg_scale", "top_k", "top_p", "reference",
                       "inception_weights", "batch", "roundings", "learn", "calibration_images")  # fmt: skip
    if learning is not None and model.random_weights:
        raise click.UsageError("--learn does not go with --random-weights, which cannot be learned")
    if images == 1:
        raise click.BadParameter("1 picture has no variance: expected 0, or at least 2", param_hint="--images")
    inputs = [path for path in (model.var, model.vae, roundings) if path is not None] + judging.read
    require_writable([path for path in (json_path, markdown_path) if path is not None], inputs)
    pictures = None
    if images != 0:
        asked = Asked(count_of_pictures(images, model), (seed,), Sampling(0, cfg_scale, top_k, top_p), compared, batch)
        pictures = _Pictures(asked, judging.network(threads), judging.real_pictures(), calibration_images)
    session = SessionOptions(threads=threads, spinning=spinning, ops=ops, ops_library=ops_library)
    quality = None
    with show_resumable_steps(store.folder) as steps:
        read = _read(model, pictures, store, roundings, learning, session, steps)
        scores, rows, left_out = _planned(read, seed, session, steps)
        steps.finish()
        built_alone = [row_step(item, {}, 0, image_seconds(read.model, read.facts)) for item in rows]
        if plan:
            drawn = built_alone
            if pictures is not None and len(rows) > 1:
                steps("measuring a batch of each bundle")
                work = pictures_folder(store.folder / FIGURES, pictures.asked.images)
                drawn = plan_quality(rows, pictures.network, pictures.asked, work, session)
                steps.finish()
            print_plan([drawn[0], scores, *drawn[1:]], left_out)
            return
        _tell(built_alone, scores)
        built = _build(read, seed, session, steps)
        del read  # and the model in torch with it
        name = model_name(built.original.bundle)
        table = costs(name, built.scores, built.model, built.facts, seed, lent=model.random_weights)
        if pictures is not None and built.rows:
            quality = _quality(built, pictures, judging.note, store, session, steps)
    found = TableB(table, quality, () if quality else tuple(built.left_out))
    write_files(table_writers(json_path, found.to_json(), markdown_path, markdown(found)))
    console = results_console(json_path, markdown_path)
    print_table(found.costs, console)
    if found.quality is not None:
        print_table(found.quality, console)
    for line in found.left_out:
        console.print(printable(f"left out of B(b): {line}"))


def _read(
    model: VAROptions,
    pictures: _Pictures | None,
    store: Store,
    roundings: Path | None,
    learning: Learning | None,
    session: SessionOptions,
    steps: Steps,
) -> _Read:
    """Read the model, and check what is asked of it."""
    steps("reading the model")
    source = source_of(model)
    info, nearest = source.model_info(), model.random_weights
    depth = QUALITY.depth(info, model.model == DEMO)
    recipes = dict[str, Recipe]()
    if pictures is not None:
        sampling = pictures.asked.sampling
        require_sampling(info, cfg_scale=sampling.cfg_scale, top_k=sampling.top_k, top_p=sampling.top_p)
        if pictures.real is not None:
            require_reference(pictures.real, pictures.network, info)
        for name in METHODS:
            recipes[name] = with_fewer_images(row_recipe(name, nearest=nearest), pictures.calibration_images)
    bundles = RecipeBundles(store, lambda: source, roundings, session, learning, encoder=False)
    bundles.require_model()
    return _Read(bundles, info, facts_of(source.var), depth, recipes, nearest)


def _planned(
    read: _Read, seed: int, session: SessionOptions, steps: Steps
) -> tuple[PlannedStep, list[RecipeBundle | UnbuiltBundle], list[str]]:
    """The observing of attention, the rows with full precision first, and lines on those that cannot be built."""
    original, work = read.bundles.planned(paper_recipe(FULL_PRECISION)), read.bundles.store.folder / FIGURES
    images, of_theta = SCORE_IMAGES, dict[str, RecipeBundles]()
    if read.lent or (isinstance(original, RecipeBundle) and scores_file(original.bundle, seed, work).exists()):
        images = 0
    if isinstance(original, RecipeBundle) and not images:
        of_theta = _of_thetas(read, kept_scores(original.bundle, seed, work, session, steps, lent=read.lent))
    seconds = images * SCORING_IMAGES * image_seconds(read.model, read.facts)
    scores = PlannedStep("attention of full precision", {OBSERVED: images} if images else {}, seconds)
    rows, left_out = [original], list[str]()
    for name, recipe in read.recipes.items():
        bundles = of_theta.get(name, with_roundings(read.bundles, name))
        why = bundles.missing(recipe)
        if why is None:
            # Before attention is observed a theta has no places yet, and so no bundle.
            is_known = name == BASELINE or name in of_theta
            rows.append(replace(bundles.planned(recipe) if is_known else bundles.unbuilt(recipe), name=name))
        else:
            left_out.append(f"{METHODS[name]}: {why}")
    return scores, rows, left_out


def _of_thetas(read: _Read, scores: ScoreStatistics) -> dict[str, RecipeBundles]:
    """By row: bundles of its theta."""
    found = choices(scores, read.model, read.facts)
    return {row_name(choice.theta): bundles_at(read.bundles, choice) for choice in found}


def _build(read: _Read, seed: int, session: SessionOptions, steps: Steps) -> _Built:
    """Build all that is measured."""
    bundles, full = read.bundles, paper_recipe(FULL_PRECISION)
    bundles.hold([full])
    original = bundles.build(full, steps)
    scores = kept_scores(original.bundle, seed, bundles.store.figures, session, steps, lent=read.lent)
    of_theta = _of_thetas(read, scores)
    rows, left_out = list[RecipeBundle](), list[str]()
    for name, recipe in read.recipes.items():
        of_theta.get(name, bundles).hold([recipe])
    for name, recipe in read.recipes.items():
        found, missing = built_rows([recipe], of_theta.get(name, bundles), steps)
        rows += [RecipeBundle(name, item.bundle) for item in found]
        left_out += [f"{METHODS[name]}: {line}" for line in missing]
    notes = [*rounding_note(bundles, nearest=read.lent), *([RANDOM_WEIGHTS] if read.lent else [])]
    return _Built(original, read.model, read.facts, scores, read.depth, rows, left_out, notes)


def _tell(built: Sequence[PlannedStep], scores: PlannedStep) -> None:
    """What will be done before pictures are drawn, and about how long it takes."""
    observed, seconds = scores.left.get(OBSERVED, 0), scores.seconds + sum(step.seconds for step in built)
    unbuilt = counted(sum(step.builds for step in built), "bundle")
    told = f"attention of {observed} images to observe, {unbuilt} to build"
    more = ", and learning" if any(step.learns for step in built) else ""
    click.echo(f"{told}: about {in_words(seconds)} on two cores{more}", err=True)


def _quality(
    built: _Built, pictures: _Pictures, reference: str | None, store: Store, session: SessionOptions, steps: Steps
) -> PaperTable:
    """Part (b)."""
    every, asked, network = [built.original, *built.rows], pictures.asked, pictures.network
    work = pictures_folder(store.figures, asked.images)
    make_folder(work)
    measured = measure_quality(every, network, asked, work, reference=pictures.real, options=session, on_images=steps)
    return quality_table(
        QUALITY,
        measured,
        Subject.of_bundles(every),
        network,
        asked,
        built.depth,
        reference=reference,
        left_out=built.left_out,
        notes=built.notes,
    )
