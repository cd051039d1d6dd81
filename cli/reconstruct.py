"""`nextscale reconstruct`: learn how a recipe rounds a model's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nextscale.cli.model_options import VAROptions, model_options
from nextscale.cli.options import CHECKPOINT, FiniteRange, IntegerList
from nextscale.cli.progress import show_resumable_steps
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.runtime._text import printable
from nextscale.runtime.image_io import require_absent, require_writable
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

if TYPE_CHECKING:
    from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
    from nextscale.models.var.transformer import VARConfig
    from nextscale.simulation._device import Device

DEFAULTS = ReconstructionSettings()
SUFFIX = ".safetensors"


@click.command()
@model_options()
@click.option("--recipe", "recipe_name", required=True, metavar="NAME|FILE", help="The recipe, or its .toml file.")
@click.option("--calibration", type=CHECKPOINT, metavar="DIR", help="Token maps that `nextscale calibrate` made.")
@click.option(
    "--token-maps",
    type=CHECKPOINT,
    metavar="FILE",
    help="Token maps as an .npz with class_labels and token_maps, instead.",
)
@click.option("--out", type=CHECKPOINT, required=True, help="The .safetensors file to make.")
@click.option("--images", type=click.IntRange(2), help="Use the first N token maps.  [default: all]")
@click.option("--iterations", type=click.IntRange(1), default=DEFAULTS.iterations, show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=DEFAULTS.batch_size, show_default=True, help="Images per step."
)
@click.option("--theta", type=FiniteRange(0, 1), help="Threshold for shift-and-sum, from `nextscale theta`.")
@click.option("--places", type=IntegerList(), metavar="1,2,…", help="Attentive tokens per stage.  [default: no limit]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the order of the images."
)
def reconstruct(
    model: VAROptions,
    recipe_name: str,
    calibration: Path | None,
    token_maps: Path | None,
    out: Path,
    images: int | None,
    iterations: int,
    batch: int,
    theta: float | None,
    places: list[int] | None,
    device: Device,
    seed: int,
) -> None:
    """Learn how RECIPE rounds a model's weights, block by block (BRECQ), into the file OUT.

    Finished parts are kept in OUT.partial meanwhile; after Ctrl-C the same command goes on from there. `nextscale
    build --learn` does this and all the steps before and after it.

    \b
    nextscale calibrate demo-fp32 --out demo-maps
    nextscale reconstruct demo --recipe brecq-w4a6 --calibration demo-maps --out demo-w4a6.safetensors
    """
    from nextscale.calib_data.token_maps import TokenMaps
    from nextscale.models.var.layers import linear_shapes
    from nextscale.simulation._device import on_device, require_device
    from nextscale.simulation.reconstruct import Step
    from nextscale.simulation.reconstruct import reconstruct as learn
    from nextscale.simulation.var_images import VARImages

    if out.suffix != SUFFIX:
        raise click.UsageError(f"--out {out}: rounding is written as safetensors; give a name that ends in {SUFFIX}")
    require_absent(out)
    require_writable([out])
    if (calibration is None) == (token_maps is None):
        raise click.UsageError("give either --calibration or --token-maps")
    require_device(device)
    recipe = load_recipe(recipe_name)
    source = model.source("model")
    recipe.require_layers(list(linear_shapes(source.var.config)))
    shift_and_sum = _shift_and_sum(recipe, theta, places, source.var.config)
    if calibration is not None:
        maps = TokenMaps.load(calibration, source.model_info())
    else:
        assert token_maps is not None
        maps = TokenMaps.from_arrays(token_maps, source.model_info())
    settings = replace(DEFAULTS, iterations=iterations, batch_size=batch, seed=seed)
    work = out.with_name(f"{out.name}.partial")
    with show_resumable_steps(work) as progress, on_device(device, source.var, source.vqvae.quantize):

        def show(step: Step) -> None:
            progress(step.unit, step.step, step.steps, f"error {step.error:.3f} of nearest's")

        progress("preparing")
        seen = VARImages(source.var, source.vqvae.quantize, maps.class_labels[:images], maps.token_maps[:images])
        rounding = learn(seen, recipe, settings, shift_and_sum=shift_and_sum, work=work, on_step=show)
    rounding.save(out)
    shutil.rmtree(work)
    click.echo(f"{printable(str(out))}: {recipe.name}, {rounding.summary()}")


def _shift_and_sum(
    recipe: Recipe, theta: float | None, places: list[int] | None, config: VARConfig
) -> ShiftAndSum | None:
    from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
    from nextscale.simulation.simulated_attention import all_places

    if recipe.attention.shift_and_sum == "off":
        if theta is not None or places is not None:
            raise click.UsageError(f"recipe {recipe.name} has no shift-and-sum: leave out --theta and --places")
        return None
    if theta is None:
        raise click.UsageError(f"recipe {recipe.name} has shift-and-sum: give --theta (see `nextscale theta`)")
    found = all_places([pn * pn for pn in config.patch_nums]) if places is None else tuple(places)
    return ShiftAndSum(recipe.attention.shift_and_sum, theta, found)
