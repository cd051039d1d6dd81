"""`nextscale build`: a checkpoint, a preset with random weights or a demo model into a bundle."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nextscale.cli.infinity_options import InfinityOptions
from nextscale.cli.model_options import VAROptions, model_options
from nextscale.cli.options import CHECKPOINT, reduce_range_option, refuse, threads
from nextscale.cli.progress import show_resumable_steps, show_steps
from nextscale.graph_passes.recipe import MAX_IMAGES, Recipe, load_recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

if TYPE_CHECKING:
    from nextscale.compiler.options import BuildOptions
    from nextscale.models.sources import Source
    from nextscale.runtime._bundle import Bundle
    from nextscale.simulation._device import Device

LEARNING = ReconstructionSettings()


@click.command()
@model_options(to_build=True)
@click.option("--name", help="The bundle's name.  [default: the output folder's name]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--recipe", metavar="NAME|FILE", help="How to quantize; `nextscale recipes` lists them.  [default: default]"
)
@click.option("--precision", type=click.Choice(["fp32"]), help="The same as --recipe fp32.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="DIR", help="Token maps of `nextscale calibrate`."
)
@click.option(
    "--calibration-images", type=click.IntRange(1, MAX_IMAGES), help="How many, instead of the recipe's number."
)
@click.option("--rounding", type=CHECKPOINT, metavar="FILE", help="Rounding of weights that was learned before.")
@click.option(
    "--learn",
    is_flag=True,
    help="Learn the rounding of weights, for recipes that need it; recipes that round to nearest are refused.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    default=LEARNING.iterations,
    show_default=True,
    help="With --learn: training steps for each half of a block.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=LEARNING.batch_size,
    show_default=True,
    help="With --learn: images per step.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="With --learn: where to learn.",
)
@reduce_range_option
@click.option("--no-encoder", is_flag=True, help="Leave out the graph that makes token maps of pictures.")
@click.option(
    "--no-text-encoder",
    is_flag=True,
    help="Leave out the text encoder, which then serves to calibrate alone; programs give features of texts.",
)
@click.option("--no-fused", is_flag=True, help="Leave out the graphs of fused operators, which add under 5%.")
@click.option("--debug", is_flag=True, help="Let the graph count the attentive tokens that find no place.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="Seed of random weights, calibration and learning.",
)
@threads
def build(
    model: VAROptions | InfinityOptions,
    name: str | None,
    out: Path,
    recipe: str | None,
    precision: str | None,
    calibration: Path | None,
    calibration_images: int | None,
    rounding: Path | None,
    learn: bool,
    iterations: int,
    batch: int,
    device: Device,
    reduce_range: bool,
    no_encoder: bool,
    no_text_encoder: bool,
    no_fused: bool,
    debug: bool,
    seed: int,
    threads: int,
) -> None:
    """Turn a model into the bundle OUT: ONNX graphs, weights and a manifest.

    With --learn, finished work is kept in OUT.learning until the bundle is written; after Ctrl-C the same command goes
    on from there.

    \b
    nextscale build emoji --out emoji-int8
    nextscale build demo --out demo-int8
    nextscale build --var var_d16.pth --vae vae_ch160v4096z32.pth --out d16-int8
    nextscale build --var var_d16.pth --vae vae_ch160v4096z32.pth --recipe ours-w4a6 --learn --out d16-ours-w4a6
    nextscale build --infinity infinity_2b_reg.pth --vae infinity_vae_d32reg.pth --text flan-t5-xl --out infinity-int8
    nextscale build --preset var-d16 --random-weights --out d16-random
    """
    from nextscale.compiler._families import family_of
    from nextscale.compiler._rounders import require_reducible
    from nextscale.compiler.build import build_bundle
    from nextscale.compiler.learn import require_learned
    from nextscale.compiler.options import BuildOptions
    from nextscale.models.sources import require_plain_name
    from nextscale.runtime.image_io import require_absent
    from nextscale.simulation.rounding import Rounding

    require_absent(out)
    if recipe is not None and precision is not None:
        raise click.UsageError("--precision fp32 is --recipe fp32; give one of the two")
    named = recipe or precision or "default"
    chosen = load_recipe(named)
    if calibration_images is not None:
        chosen = replace(chosen, calibration=replace(chosen.calibration, images=calibration_images))
    if chosen.precision == "fp32":
        idle = ("rounding", "calibration", "reduce_range", "learn", "no_fused", "prompts")
        refuse(f"recipe {chosen.name}: full precision", *idle)
    model.require_recipe(chosen)
    if reduce_range:
        require_reducible(chosen)
    if learn:
        refuse("--learn", "rounding")
        require_learned(chosen)
    else:
        refuse("a build without --learn", "iterations", "batch", "device")
    if chosen.learned and rounding is None:
        if model.random_weights:
            raise NextscaleError(
                f"recipe {chosen.name}: its weights are reconstructed, which random ones cannot be; choose a recipe "
                "that rounds to nearest"
            )
        if not learn:
            raise NextscaleError(_missing_rounding(chosen, named, model, calibration))
    source = model.source(require_plain_name(name or out.name), seed)
    options = BuildOptions(
        chosen,
        seed=seed,
        session=SessionOptions(threads=threads),
        token_maps=None if calibration is None else family_of(source).load_sampled(calibration),
        rounding=None if rounding is None else Rounding.load(rounding),
        count_overflow=debug,
        reduce_range=reduce_range,
        fused=not no_fused,
        encoder=not no_encoder,
        text_encoder=not no_text_encoder,
    )
    if learn:
        settings = replace(LEARNING, iterations=iterations, batch_size=batch, seed=seed)
        bundle = _learned(source, out, options, settings, device)
    else:
        with show_steps() as progress:
            bundle = build_bundle(source, out, options, progress)
    click.echo(
        f"{printable(str(bundle.path))}: {bundle.manifest.name}, {chosen.name}, {bundle.manifest.size / 1e6:.1f} MB"
    )
    _tell_saturation(bundle)


def _learned(
    source: Source, out: Path, options: BuildOptions, settings: ReconstructionSettings, device: Device
) -> Bundle:
    """A bundle of learned weights, and what learning them gained."""
    from nextscale.compiler.learn import learn_bundle, learning_folder

    with show_resumable_steps(learning_folder(out)) as progress:
        bundle, rounding = learn_bundle(source, out, options, settings, device, progress)
    click.echo(rounding.summary())
    return bundle


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


def _missing_rounding(recipe: Recipe, name: str, model: VAROptions | InfinityOptions, calibration: Path | None) -> str:
    """What to run for the weights that the recipe `name` wants, with what the command line says of the model."""
    if isinstance(model, InfinityOptions):
        return f"recipe {recipe.name}: its weights are reconstructed; add --learn"
    command = ["nextscale", "reconstruct", *model.as_arguments(), "--recipe", name]
    notes = []
    command += ["--calibration", str(calibration or "MAPS")]
    if calibration is None:
        notes.append("MAPS: made by `nextscale calibrate`")
    if recipe.attention.shift_and_sum != "off":
        command += ["--theta", "THETA"]
        notes.append("THETA: chosen by `nextscale theta`")
    file = f"{recipe.name}.safetensors"
    hint = f" ({'; '.join(notes)})" if notes else ""
    return (
        f"recipe {recipe.name}: its weights are reconstructed; add --learn, or run "
        f"`{shlex.join([*command, '--out', file])}`{hint} and give {file} with --rounding"
    )
