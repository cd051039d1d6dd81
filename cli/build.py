"""`nextscale build`: a checkpoint, a preset with random weights or the demo model into a bundle."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.cli.options import IntegerList, threads
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.compiler.rounders import require_reducible
from nextscale.export.bundle_writer import require_absent
from nextscale.graph_passes.recipe import MAX_IMAGES, Recipe, load_recipe
from nextscale.models.sources import checkpoint_source, demo_source, random_source, require_plain_name
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import NextscaleError
from nextscale.runtime.session import SessionOptions
from nextscale.simulation.rounding import Rounding

CHECKPOINT = click.Path(path_type=Path)
# What the tensors of a checkpoint may not tell, and a preset does.
UNTOLD = ("patch_nums", "num_heads", "quant_resi", "using_znorm")
# What `reconstruct` has, too.
OF_RECONSTRUCT = ("var", "vae", "preset", "patch_nums", "num_heads", "quant_resi", "recipe")


@click.command()
@click.argument("model", required=False, type=click.Choice(["demo"]))
@click.option("--var", type=CHECKPOINT, help="The transformer's checkpoint (.pth or .safetensors).")
@click.option("--vae", type=CHECKPOINT, help="The VQVAE's checkpoint (.pth or .safetensors).")
@click.option("--preset", metavar="NAME", help="An official release: var-d16, -d20, -d24, -d30 or -d36.")
@click.option("--random-weights", is_flag=True, help="Fill the preset with random weights, to measure speed.")
@click.option("--patch-nums", type=IntegerList(), metavar="1,2,…", help="Stages, where the checkpoint cannot tell.")
@click.option("--num-heads", type=click.IntRange(1), help="Heads, where the checkpoint cannot tell (no l2 norm).")
@click.option(
    "--quant-resi",
    type=float,
    default=0.5,
    show_default=True,
    help="Of the VQVAE, whose checkpoint never tells; the default is the official releases'.",
)
@click.option("--using-znorm", is_flag=True, help="Likewise; the official releases do without it.")
@click.option(
    "--class-names",
    type=CHECKPOINT,
    help="Text of one name a line, or JSON: a list, or an object with the ids as keys.",
)
@click.option("--name", help="The bundle's name; the output folder's by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="How to quantize; `nextscale recipes` lists them.  [default: default]"
)
@click.option("--precision", type=click.Choice(["fp32"]), help="The same as --recipe fp32.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="DIR", help="Token maps of `nextscale calibrate`."
)
@click.option("--calibration-images", type=click.IntRange(1, MAX_IMAGES), help="Instead of the recipe's number.")
@click.option("--rounding", type=CHECKPOINT, metavar="FILE", help="Weights learned by `nextscale reconstruct`.")
@click.option(
    "--reduce-range",
    is_flag=True,
    help="For CPUs without VNNI, whose integer products would saturate: coarser weights that never do.",
)
@click.option("--debug", is_flag=True, help="Let the graph count attentive tokens without a place.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="Of random weights and calibration.",
)
@threads
def build(
    model: str | None,
    var: Path | None,
    vae: Path | None,
    preset: str | None,
    random_weights: bool,
    patch_nums: list[int] | None,
    num_heads: int | None,
    quant_resi: float,
    using_znorm: bool,
    class_names: Path | None,
    name: str | None,
    out: Path,
    recipe: str | None,
    precision: str | None,
    calibration: Path | None,
    calibration_images: int | None,
    rounding: Path | None,
    reduce_range: bool,
    debug: bool,
    seed: int,
    threads: int,
) -> None:
    """Turn a model into the bundle OUT: ONNX graphs, weights and a manifest.

    \b
    nextscale build demo --out demo-int8
    nextscale build --var var_d16.pth --vae vae_ch160v4096z32.pth --out d16-int8
    nextscale build --preset var-d16 --random-weights --out d16-random
    """
    require_absent(out)
    if recipe is not None and precision is not None:
        raise click.UsageError("--precision fp32 is --recipe fp32; give one of the two")
    chosen = load_recipe(recipe or precision or "default")
    if calibration_images is not None:
        chosen = replace(chosen, calibration=replace(chosen.calibration, images=calibration_images))
    if chosen.precision == "fp32":
        _refuse(f"recipe {chosen.name}: full precision", "rounding", "calibration", "reduce_range")
    if reduce_range:
        require_reducible(chosen)
    model_told = model is not None or random_weights or (var is not None and vae is not None)
    if chosen.weights.rounding == "reconstructed" and rounding is None and model_told:
        raise NextscaleError(_missing_rounding(chosen))
    name = require_plain_name(name or out.name)
    if model == "demo":
        _refuse("demo", "var", "vae", *UNTOLD, "preset", "random_weights", "class_names")
        source = demo_source(name)
    elif random_weights:
        if preset is None:
            raise click.UsageError("--random-weights needs --preset")
        _refuse("--random-weights", "var", "vae", *UNTOLD)
        source = random_source(name, preset, seed, class_names)
    elif var is not None and vae is not None:
        if preset is not None:
            _refuse("--preset", *UNTOLD)
        source = checkpoint_source(
            name, var, vae, preset, patch_nums, num_heads, quant_resi, using_znorm, class_names=class_names
        )
    else:
        raise click.UsageError(
            "what to build? Give --var and --vae, or --preset with --random-weights, or `nextscale build demo`"
        )
    options = BuildOptions(
        chosen,
        seed=seed,
        session=SessionOptions(threads=threads),
        token_maps=None if calibration is None else TokenMaps.load(calibration, source.model_info()),
        rounding=None if rounding is None else Rounding.load(rounding),
        count_overflow=debug,
        reduce_range=reduce_range,
    )
    with show_steps() as progress:
        bundle = build_bundle(source, out, options, progress)
    click.echo(f"{bundle.path}: {bundle.manifest.name}, {chosen.name}, {bundle.manifest.size / 1e6:.1f} MB")
    _tell_saturation(bundle)


def _tell_saturation(bundle: Bundle) -> None:
    """One line for those who will run the bundle on a CPU on which products were seen to saturate."""
    found = bundle.manifest.recipe.get("saturation", {"can_saturate": {}})
    errors = {name: item["error"] or 0.0 for name, item in found["can_saturate"].items()}
    worst = max(errors, key=lambda name: errors[name], default=None)
    if worst is not None and errors[worst] > 0:
        learned = bundle.manifest.recipe["weights"]["rounding"] == "reconstructed"
        click.echo(
            f"on CPUs without VNNI {sum(error > 0 for error in errors.values())} of {found['products']} integer layers "
            f"saturate ({worst} the most: its result changes by {errors[worst]:.1%}); for those build "
            + ("a recipe that rounds to nearest with --reduce-range" if learned else "with --reduce-range"),
            err=True,
        )


def _refuse(what: str, *options: str) -> None:
    """Refuse those of the options that the command line gives."""
    source_of = click.get_current_context().get_parameter_source
    given = [f"--{option.replace('_', '-')}" for option in options if source_of(option) != ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(f"{what} does not go with {', '.join(given)}")


def _missing_rounding(recipe: Recipe) -> str:
    """What to run for the weights that the recipe wants, with what the command line says of the model."""
    begin = f"recipe {recipe.name}: its weights are reconstructed"
    context = click.get_current_context()
    given = context.params
    if given["random_weights"]:
        return f"{begin}, which random ones cannot be; choose a recipe that rounds to nearest"
    command = ["nextscale", "reconstruct", *([given["model"]] if given["model"] else [])]
    for option in OF_RECONSTRUCT:
        if context.get_parameter_source(option) != ParameterSource.DEFAULT:
            value = given[option]
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            command += [f"--{option.replace('_', '-')}", text]
    notes = []
    command += ["--calibration", str(given["calibration"] or "MAPS")]
    if given["calibration"] is None:
        notes.append("MAPS: made by `nextscale calibrate`")
    if recipe.attention.shift_and_sum != "off":
        command += ["--theta", "THETA"]
        notes.append("THETA: chosen by `nextscale theta`")
    file = f"{recipe.name}.safetensors"
    hint = f" ({'; '.join(notes)})" if notes else ""
    return f"{begin}; run `{shlex.join([*command, '--out', file])}`{hint}, and give {file} with --rounding"


class _Steps:
    """Shows each step of a build as a line with its time, and images as a bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._current: tuple[str, TaskID] | None = None

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        if self._current is None or self._current[0] != step:
            self.finish()
            self._current = (step, self._progress.add_task(step, total=total or None))
        self._progress.update(self._current[1], completed=done)

    def finish(self) -> None:
        if self._current is not None:
            task = self._current[1]
            total = self._progress.tasks[task].total or 1
            self._progress.update(task, total=total, completed=total)


@contextmanager
def show_steps() -> Iterator["_Steps"]:
    """Progress of a build on stderr, if that is a terminal."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, quiet=not sys.stderr.isatty()),
    ) as progress:
        steps = _Steps(progress)
        yield steps
        steps.finish()
