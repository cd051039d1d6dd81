"""`nextscale paper table-2`: full precision and recipes of an Infinity, compared by pictures and by bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from nextscale.cli import options
from nextscale.cli.infinity_options import EMOJI, INFINITY_MODEL, InfinityOptions
from nextscale.cli.learning_options import learning_options
from nextscale.cli.paper_tables import print_plan
from nextscale.cli.progress import show_resumable_steps
from nextscale.cli.results import results_console, table_writers
from nextscale.cli.store_options import store_options
from nextscale.cli.subjects import read_prompts
from nextscale.cli.table_rows import built_rows, planned_rows, recipe_rows
from nextscale.demo.emoji.prompts import FILE as EMOJI_PROMPTS
from nextscale.evaluate._kept_figures import bundle_sha256
from nextscale.evaluate.concept_judge import ConceptJudge
from nextscale.evaluate.prompt_scores import HumanPreference, ImageReward, PromptScore
from nextscale.evaluate.vgg16_features import Vgg16Features
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.sources import require_plain_name
from nextscale.models.t5.text_source import TextSource
from nextscale.paper._geneval import GenEval
from nextscale.paper._prompted_pictures import Asked, Drawing, Measures, read_asked, spread
from nextscale.paper._table_2_page import headers, markdown, notes, row_cells
from nextscale.paper.recipe_bundles import Learning, RecipeBundle, RecipeBundles
from nextscale.paper.store import FIGURES, Store
from nextscale.paper.table_2 import HPS, IMAGE_REWARD, ROWS, Comparing, Table2, measure_table_2, plan_table_2
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._checked_values import require_integer
from nextscale.runtime._errors import NextscaleError, RequestError
from nextscale.runtime._infinity_request import infinity_request
from nextscale.runtime._input_arrays import scalar_array
from nextscale.runtime._manifest import RequestInput
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._wording import shown_value
from nextscale.runtime.image_io import require_writable, write_files

PARTS = ("infinity", "vae", "text")  # of a model; where none is given, the emoji model is measured
LAST_SEED = 2**63  # of the pictures; the noise floor has the next one

_MODEL = (
    *INFINITY_MODEL,
    click.option("--vae", type=options.CHECKPOINT, help="The checkpoint of its VAE."),
    click.option("--weights", metavar="NAME", help="Which of several sets of weights in --infinity."),
    click.option("--vae-weights", metavar="NAME", help="Which of several in --vae."),
    click.option("--calibration-prompts", type=click.Path(path_type=Path), metavar="FILE",
                 help="What to draw while the model is observed: a prompt a line.  [default: 64 that come along]"),
)  # fmt: skip


def _model_options(command: Callable[..., object]) -> Callable[..., object]:
    for option in reversed(_MODEL):
        command = option(command)
    return command


@click.command("table-2")
@_model_options
@click.option("--prompts", "prompts_path", type=click.Path(path_type=Path), metavar="FILE",
              help="What is drawn: a prompt a line, or JSON that also names what pictures shall show, as "
              "demo/emoji/prompts.json.  [default: that file, of the emoji model]")  # fmt: skip
@click.option("--judge", "judge_path", type=click.Path(path_type=Path), metavar="FILE",
              help="A classifier in ONNX that tells whether they show it; see docs/paper.md.")  # fmt: skip
@click.option("--image-reward", type=click.Path(path_type=Path), metavar="DIR",
              help="ImageReward, of the folder with ImageReward.pt and med_config.json.")  # fmt: skip
@click.option("--hps", type=click.Path(path_type=Path), metavar="FILE", help="HPSv2.1, of HPS_v2.1_compressed.pt.")
@click.option("--geneval", "geneval_path", type=click.Path(path_type=Path), metavar="DIR",
              help="GenEval's repository: draw its prompts for it, and read its results.")  # fmt: skip
@click.option("--rows", default=",".join(ROWS), metavar="NAME,…",
              help="Recipes; one of them full precision.  [default: those of the paper and default, at 6/6, 4/8, 4/6 "
              "and 4/4, and default at 8/8]")  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=1000, show_default=True,
              help="Pictures of each row, at most one of each prompt.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, LAST_SEED),
              help="Of the pictures; the noise floor has the next one.  [default: the prompts', or 0]")  # fmt: skip
@click.option("--cfg-scale", type=float, help="Guidance; 0: none.  [default: the prompts', or the bundle's]")
@click.option("--tau", type=float, help="Temperature.  [default: the prompts', or the bundle's]")
@click.option("--top-p", type=float,
              help="Of a bit's values, the likeliest of this probability.  [default: the prompts', or the bundle's]",
              )  # fmt: skip
@click.option("--compared", type=click.IntRange(1), default=32, show_default=True,
              help="Images whose bits are compared with full precision's.")  # fmt: skip
@click.option("--attention-images", type=click.IntRange(0), default=4, show_default=True,
              help="Of these, images on which the error of attention's product is measured; 0: none.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Pictures at a time.")
@options.threads
@options.spinning
@options.operators
@store_options
@options.roundings
@learning_options
@options.calibration_images
@options.plan
@options.json_file
@options.markdown_file
def table_2(
    prompts_path: Path | None,
    judge_path: Path | None,
    image_reward: Path | None,
    hps: Path | None,
    geneval_path: Path | None,
    rows: str,
    images: int,
    seed: int | None,
    cfg_scale: float | None,
    tau: float | None,
    top_p: float | None,
    compared: int,
    attention_images: int,
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
    **model: Any,
) -> None:
    """Draw prompts with full precision and with recipes, and measure how near the results are.

    The model is the emoji model, which comes along, unless --infinity, --vae and --text name another.

    Rows are judged by the Frechet distance of their pictures' VGG16 features to full precision's, by a judge of
    concepts that you give, by the KL and the share of equal bits when fed full precision's bits, and by the error of
    attention's product; by ImageReward, HPSv2.1 and GenEval where you have their packages and weights. Bundles are
    built into --store; after Ctrl-C the same command goes on from where it was.

    \b
    nextscale paper table-2 --rows fp32,default
    nextscale paper table-2 --infinity infinity_2b_reg.pth --vae infinity_vae_d32reg.pth --text flan-t5-xl \\
        --area 0.25M --prompts prompts.txt --rows fp32,default --markdown table_2.md
    """
    if plan:
        options.refuse("--plan, which writes nothing,", "json_path", "markdown_path")
    read_model, prompts_path = _loader(model), _prompts_path(model, prompts_path)
    given = {"cfg_scale": cfg_scale, "tau": tau, "top_p": top_p, "seed": seed}
    read = _paths(model, prompts_path, judge_path, image_reward, hps, geneval_path, roundings)
    require_writable([path for path in (json_path, markdown_path) if path is not None], read)
    wanted = recipe_rows(rows, calibration_images)
    prompts, of_file = _asked(prompts_path, judge_path)
    if len(prompts) < 2:
        raise NextscaleError(f"{prompts_path}: 1 prompt; expected at least 2, between which pictures differ")
    asked = spread(prompts, images)
    sampling = _sampling(given, of_file, prompts_path)
    session = SessionOptions(
        threads=threads, spinning=spinning, ops=ops, ops_library=ops_library, keep_text_encoder=False
    )
    geneval = None if geneval_path is None else GenEval(geneval_path, store.folder)
    if geneval is not None:
        geneval.prompts()
    measures = _measures(judge_path, image_reward, hps, threads)
    if measures.judge is not None:
        measures.judge.require([item.objects for item in asked])

    def load() -> InfinitySource:
        source = read_model()
        _require_read(asked, source.text, prompts_path)
        return source

    with show_resumable_steps(store.folder) as steps:
        steps("reading the model")
        model_bundles = RecipeBundles(store, load, roundings, session, learning, encoder=False)
        model_bundles.require_calibration(wanted)
        model_bundles.require_model()
        comparing = Comparing(compared, attention_images)
        if plan:
            planned, left_out = planned_rows(wanted, model_bundles)
            built = [item.bundle for item in planned if isinstance(item, RecipeBundle)]
            if geneval is not None and isinstance(planned[0], RecipeBundle):
                geneval = _of_pictures(geneval, planned[0].bundle, store.folder / FIGURES)
            # What a request has by default does not matter where there is nothing to be gone on with.
            request = built[0].manifest.request if built else infinity_request(1, 1, 1, patchify=False)
            drawing = _drawing(request, sampling, batch)
            steps("measuring a batch of each bundle")
            told = plan_table_2(
                planned, asked, measures, drawing, comparing, store.folder / FIGURES, options=session, geneval=geneval
            )
            steps.finish()
            print_plan(told, left_out)
            return
        model_bundles.hold(wanted)
        bundles, left_out = built_rows(wanted, model_bundles, steps)
        del model_bundles  # and the model in torch with it
        original = bundles[0].bundle
        if geneval is not None:
            geneval = _of_pictures(geneval, original, store.figures)
        table = measure_table_2(
            bundles,
            asked,
            measures,
            _drawing(original.manifest.request, sampling, batch),
            comparing,
            store.figures,
            options=session,
            geneval=geneval,
            left_out=left_out,
            on_images=steps,
        )
    write_files(table_writers(json_path, table.to_json(), markdown_path, markdown(table)))
    _print(table, results_console(json_path, markdown_path))


def _paths(model: dict[str, Any], *further: Path | None) -> list[Path]:
    """All that is read."""
    named = [model[name] for name in ("infinity", "vae", "calibration_prompts")]
    text = [] if model["text"] is None else [Path(model["text"])]
    return [path for path in (*named, *text, *further) if path is not None]


def _loader(model: dict[str, Any]) -> Callable[[], InfinitySource]:
    """What reads the model.

    Raises:
        click.UsageError: not all of it is given; or none of it, but an option that the emoji model does not have.
    """
    missing, emoji = [f"--{name}" for name in PARTS if model[name] is None], _is_emoji(model)
    given = {key: value for key, value in model.items() if key != "calibration_prompts"}
    if emoji:
        options.refuse("the emoji model, which is measured without --infinity,", *given)
    elif missing:
        raise click.UsageError(f"which model? Give --infinity, --vae and --text: {', '.join(missing)} is missing")
    for name in ("area", "ratio"):
        if "," in model[name]:
            raise click.BadParameter(f"{model[name]!r}: expected one; Table 2 is of one size", param_hint=f"--{name}")
    chosen = InfinityOptions(
        model=EMOJI if emoji else None,
        preset=None,
        random_weights=False,
        prompts=model["calibration_prompts"],
        **given,
    )
    name = "nextscale-emoji" if emoji else require_plain_name(model["infinity"].stem)
    return lambda: chosen.source(name)


def _is_emoji(model: dict[str, Any]) -> bool:
    return all(model[name] is None for name in PARTS)


def _prompts_path(model: dict[str, Any], given: Path | None) -> Path:
    """Where the prompts are: the emoji model has its own.

    Raises:
        click.UsageError: none are given for another model.
    """
    if given is not None:
        return given
    if not _is_emoji(model):
        raise click.UsageError("what shall be drawn? Give --prompts; the emoji model alone has its own")
    return EMOJI_PROMPTS


def _asked(path: Path, judge: Path | None) -> tuple[list[Asked], dict[str, float]]:
    """The prompts of a file, and how it says to sample; what pictures shall show is left out where nobody judges."""
    if path.suffix.lower() != ".json":
        if judge is not None:
            raise click.BadParameter(
                f"{path}: lines do not say what pictures shall show; give JSON, as demo/emoji/prompts.json",
                param_hint="--judge",
            )
        return [Asked(prompt) for prompt in read_prompts(path)], {}
    found, settings = read_asked(path)
    return (found if judge is not None else [replace(item, objects=()) for item in found]), settings


def _sampling(given: Mapping[str, float | None], of_file: Mapping[str, float], path: Path) -> dict[str, float]:
    """How to sample: what options say, and what the file says where they do not.

    Raises:
        NextscaleError: a number that no request may have, or a seed that the noise floor has no next of.
    """
    limits = {item.name: item for item in infinity_request(1, 1, 1, patchify=False)}
    found = dict[str, float]()
    for name, value in given.items():
        where = f"--{name.replace('_', '-')}" if value is not None else f"{path}, settings"
        value = of_file.get(name) if value is None else value
        if value is None:
            continue
        try:
            if name == "seed" and not 0 <= require_integer(name, value) <= LAST_SEED:
                raise RequestError(f"seed {shown_value(value)} is out of range: expected 0 to 2^63")
            if name != "seed":
                scalar_array(limits[name], value)
        except RequestError as error:
            raise NextscaleError(f"{where}: {error}") from None
        found[name] = value
    return found


def _require_read(asked: Sequence[Asked], text: TextSource | None, path: Path) -> None:
    """Raise NextscaleError unless the model's tokenizer takes all prompts."""
    if text is None:
        return
    tokenizer = text.opened_tokenizer()
    for item in asked:
        try:
            tokenizer.encode(item.prompt)
        except RequestError as error:
            raise NextscaleError(f"{path}: {error}") from None


def _measures(judge: Path | None, image_reward: Path | None, hps: Path | None, threads: int) -> Measures:
    scores = dict[str, PromptScore]()
    features = Vgg16Features(threads=threads)
    seen_by = None if judge is None else ConceptJudge(judge, threads)
    if image_reward is not None:
        scores[IMAGE_REWARD] = ImageReward(image_reward)
    if hps is not None:
        scores[HPS] = HumanPreference(hps)
    return Measures(features, seen_by, scores)


def _of_pictures(geneval: GenEval, original: Bundle, figures: Path) -> GenEval:
    """With a folder for the pictures of this model's bundles."""
    return replace(geneval, work=figures / f"geneval-{bundle_sha256(original)[:12]}")


def _drawing(request: Sequence[RequestInput], sampling: Mapping[str, float], batch: int) -> Drawing:
    """With the bundle's defaults where nothing is said."""
    defaults = {item.name: item.default[0] for item in request if item.kind == "scalar"}
    found = {"seed": 0, **defaults, **sampling}
    return Drawing(int(found["seed"]), found["cfg_scale"], found["tau"], found["top_p"], batch)


def _print(table: Table2, console: Console) -> None:
    console.soft_wrap = True
    console.width = max(console.width, 160) if not console.is_terminal else console.width
    for note in notes(table):
        console.print(printable(note))
    shown = Table("method", "W/A", *headers(table), box=SIMPLE)
    for row in table.rows:
        shown.add_row(*map(printable, row_cells(table, row)[:-3]))
    console.print(shown)
    for line in table.left_out:
        console.print(printable(f"left out: {line}"))
    for line in table.warnings:
        console.print(printable(f"warning: {line}"))
