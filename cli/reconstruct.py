"""`nextscale reconstruct`: learn how a recipe rounds a model's weights."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nextscale.calib_data.token_maps import ARRAYS, read_npz
from nextscale.cli.options import IntegerList
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.sources import checkpoint_source, demo_source
from nextscale.models.var.layers import linear_shapes
from nextscale.models.var.transformer import VARConfig
from nextscale.runtime.errors import NextscaleError, OutputError
from nextscale.simulation.reconstruct import OnStep, ReconstructionSettings, Step
from nextscale.simulation.reconstruct import reconstruct as learn
from nextscale.simulation.simulated_attention import all_places

FILE = click.Path(path_type=Path)
DEFAULTS = ReconstructionSettings()
SUFFIX = ".safetensors"


@click.command()
@click.argument("model", required=False, type=click.Choice(["demo"]))
@click.option("--var", type=FILE, help="The transformer's checkpoint (.pth or .safetensors).")
@click.option("--vae", type=FILE, help="The VQVAE's checkpoint (.pth or .safetensors).")
@click.option("--preset", metavar="NAME", help="An official release: var-d16, -d20, -d24, -d30 or -d36.")
@click.option("--patch-nums", type=IntegerList(), metavar="1,2,…", help="Stages, where the checkpoint cannot tell.")
@click.option("--num-heads", type=click.IntRange(1), help="Heads, where the checkpoint cannot tell (no l2 norm).")
@click.option("--quant-resi", type=float, default=0.5, show_default=True, help="Of the VQVAE; see `build`.")
@click.option("--recipe", "recipe_name", required=True, metavar="NAME|FILE", help="A recipe, or a .toml file.")
@click.option("--calibration", type=FILE, metavar="DIR", help="Token maps that `nextscale calibrate` made.")
@click.option("--token-maps", type=FILE, metavar="FILE", help="Or an .npz with class_labels and token_maps.")
@click.option("--out", type=FILE, required=True, help="The file to make, .safetensors.")
@click.option("--images", type=click.IntRange(2), help="Use the first N token maps.  [default: all]")
@click.option("--iterations", type=click.IntRange(1), default=DEFAULTS.iterations, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=DEFAULTS.batch_size, show_default=True, help="Images a step.")
@click.option("--theta", type=click.FloatRange(0, 1), help="Of shift-and-sum (`nextscale theta`).")
@click.option("--places", type=IntegerList(), metavar="1,2,…", help="Attentive tokens a stage.  [default: no limit]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of the images' order.")
def reconstruct(
    model: str | None,
    var: Path | None,
    vae: Path | None,
    preset: str | None,
    patch_nums: list[int] | None,
    num_heads: int | None,
    quant_resi: float,
    recipe_name: str,
    calibration: Path | None,
    token_maps: Path | None,
    out: Path,
    images: int | None,
    iterations: int,
    batch: int,
    theta: float | None,
    places: list[int] | None,
    device: str,
    seed: int,
) -> None:
    """Learn how RECIPE rounds a model's weights, block by block (BRECQ), into the file OUT.

    Finished units lie in OUT.partial meanwhile; after Ctrl-C the same command goes on from there.

    \b
    nextscale calibrate demo-fp32 --out demo-maps
    nextscale reconstruct demo --recipe brecq-w4a6 --calibration demo-maps --out demo-w4a6.safetensors
    """
    if out.suffix != SUFFIX:
        raise click.UsageError(f"--out {out}: rounding is written as safetensors; give a name that ends in {SUFFIX}")
    if out.exists():
        raise OutputError(f"{out}: exists already; choose another --out or remove it first")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out}: no folder {out.absolute().parent}")
    if (calibration is None) == (token_maps is None):
        raise click.UsageError("give either --calibration or --token-maps")
    if device == "cuda" and not torch.cuda.is_available():
        raise NextscaleError("--device cuda: this torch finds no GPU")
    recipe = load_recipe(recipe_name)
    if model == "demo":
        if var is not None or vae is not None or preset is not None:
            raise click.UsageError("demo does not go with --var, --vae or --preset")
        source = demo_source("demo")
    elif var is not None and vae is not None:
        source = checkpoint_source("model", var, vae, preset, patch_nums, num_heads, quant_resi)
    else:
        raise click.UsageError("which model? Give --var and --vae, or `nextscale reconstruct demo`")
    recipe.require_layers(list(linear_shapes(source.var.config)))
    shift_and_sum = _shift_and_sum(recipe, theta, places, source.var.config)
    path = calibration / ARRAYS if calibration is not None else token_maps
    assert path is not None
    labels, maps = read_token_maps(path, source.var.config)
    settings = replace(DEFAULTS, iterations=iterations, batch_size=batch, seed=seed)
    work = out.with_name(f"{out.name}.partial")
    try:
        with _progress() as show, _gpu_memory():
            rounding = learn(
                source.var.to(device),
                source.vqvae.quantize.to(device),
                recipe,
                labels[:images],
                maps[:images],
                settings,
                shift_and_sum=shift_and_sum,
                work=work,
                on_step=show,
            )
    except KeyboardInterrupt:
        if work.exists():
            click.echo(f"what is finished is in {work}; the same command goes on from there", err=True)
        raise
    rounding.save(out)
    shutil.rmtree(work)
    report = rounding.report
    click.echo(
        f"{out}: {recipe.name}, KL of {report['held_out_images']} held-out images {report['kl_nearest']:.4f} rounded "
        f"to nearest, {report['kl_reconstructed']:.4f} reconstructed; kept: {report['kept']}"
    )


def _shift_and_sum(
    recipe: Recipe, theta: float | None, places: list[int] | None, config: VARConfig
) -> ShiftAndSum | None:
    if recipe.attention.shift_and_sum == "off":
        if theta is not None or places is not None:
            raise click.UsageError(f"recipe {recipe.name} has no shift-and-sum: leave out --theta and --places")
        return None
    if theta is None:
        raise click.UsageError(f"recipe {recipe.name} has shift-and-sum: give --theta (see `nextscale theta`)")
    found = all_places(config) if places is None else tuple(places)
    return ShiftAndSum(recipe.attention.shift_and_sum, theta, found)


def read_token_maps(path: Path, config: VARConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels int64 [N] and token maps int64 [N, L] of an .npz, checked against the model.

    Raises:
        NextscaleError: it cannot be read, or is of another model.
    """
    arrays = read_npz(path, ("class_labels", "token_maps"))
    labels, maps = arrays["class_labels"], arrays["token_maps"]
    if labels.ndim != 1 or maps.shape != (len(labels), config.num_tokens) or not len(labels):
        raise NextscaleError(
            f"{path}: labels {list(labels.shape)} and token maps {list(maps.shape)}; expected [N] and "
            f"[N, {config.num_tokens}]"
        )
    for name, found, limit in (("class_labels", labels, config.num_classes), ("token_maps", maps, config.vocab_size)):
        if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= limit:
            raise NextscaleError(f"{path}: {name} must be integers from 0 to {limit - 1}")
    return labels.astype(np.int64), maps.astype(np.int64)


@contextmanager
def _progress() -> Iterator[OnStep]:
    """A bar for each unit with its two losses on stderr, if that is a terminal."""
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=not sys.stderr.isatty())) as progress:
        task = progress.add_task("preparing", total=None, losses="")
        unit = ""

        def show(step: Step) -> None:
            nonlocal task, unit
            if step.unit != unit:
                progress.stop_task(task)
                task, unit = progress.add_task(step.unit, total=step.steps, losses=""), step.unit
            losses = f"error {step.error:.3f} of nearest's, undecided {step.regularizer:.4f}"
            progress.update(task, completed=step.step, losses=losses)

        yield show


@contextmanager
def _gpu_memory() -> Iterator[None]:
    """A GPU that is too small is one line, not a traceback."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise NextscaleError("out of GPU memory; fewer images a step (--batch) need less") from None
