"""Learn the demo model's roundings by several recipes, one after the other: those of benchmarks/roundings.

Each finished recipe leaves OUT/{recipe}.safetensors and a line of figures in OUT/figures.jsonl, and on stdout; one that
lies in OUT is skipped, and the units of one that was interrupted are not learned again. The token maps are sampled once
into WORK. Another CPU or GPU rounds sums otherwise, so that some bits differ there (benchmarks/roundings/README.md).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from learned_roundings import ROUNDINGS, recorded

from nextscale.calib_data.token_maps import ARRAYS
from nextscale.cli.main import main as nextscale
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.var.sources import demo_source
from nextscale.models.var.transformer import VARConfig
from nextscale.simulation.reconstruct import ReconstructionSettings, Step, reconstruct
from nextscale.simulation.simulated_attention import all_places
from nextscale.simulation.var_images import VARImages

DEFAULTS = ReconstructionSettings(iterations=800)  # as the recorded ones
FIGURES = ("kept", "kl_nearest", "kl_reconstructed", "kl_reconstructed_stderr", "top1_nearest", "top1_reconstructed")


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--recipes", required=True, help="Names or files, separated by commas.")
@click.option("--out", type=click.Path(path_type=Path), default=ROUNDINGS, help="The folder of the files to make.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/reconstruct"), help="Of the token maps.")
@click.option("--device", default="cpu", help="cpu, or cuda:K.")
@click.option("--iterations", type=int, default=DEFAULTS.iterations)
@click.option("--batch", type=int, default=DEFAULTS.batch_size)
@click.option("--images", type=int, help="Token maps to use.  [default: all 256]", show_default=False)
@click.option("--theta", type=float, help="Of shift-and-sum.  [default: the recorded one]", show_default=False)
@click.option(
    "--places",
    help="With --theta: attentive tokens per stage, separated by commas.  [default: no limit]",
    show_default=False,
)
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=int, default=1, help="Of torch on the CPU.")
def main(
    recipes: str,
    out: Path,
    work: Path,
    device: str,
    iterations: int,
    batch: int,
    images: int | None,
    theta: float | None,
    places: str | None,
    seed: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    out.mkdir(parents=True, exist_ok=True)
    source = demo_source("demo")
    var, quantizer = source.var.to(device), source.vqvae.quantize.to(device)
    settings = replace(DEFAULTS, iterations=iterations, batch_size=batch, seed=seed)
    for name in recipes.split(","):
        recipe = load_recipe(name)
        artifact = out / f"{recipe.name}.safetensors"
        if artifact.exists():
            log(f"{recipe.name}: done already")
            continue
        maps = token_maps(work, recipe.calibration.matching)
        with np.load(maps) as file:
            labels, tokens = (file[array][:images].astype(np.int64) for array in ("class_labels", "token_maps"))
        shift_and_sum = attentive_tokens(recipe, theta, places, var.config)
        began, partial = time.monotonic(), out / f"{recipe.name}.partial"
        rounding = reconstruct(
            VARImages(var, quantizer, labels, tokens),
            recipe,
            settings,
            shift_and_sum=shift_and_sum,
            work=partial,
            on_step=lambda step, name=recipe.name: show(name, step),
        )
        rounding.save(artifact)
        shutil.rmtree(partial)
        figures = {"recipe": recipe.name, "iterations": iterations, "images": len(labels)}
        figures |= {key: rounding.report[key] for key in FIGURES}
        figures |= {"theta": shift_and_sum and shift_and_sum.theta, "seconds": round(time.monotonic() - began, 1)}
        line = json.dumps(figures)
        with (out / "figures.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def token_maps(work: Path, matching: str) -> Path:
    """The .npz of 256 token maps that full precision samples, made where it is not there yet."""
    full, folder = work / "fp32", work / f"maps-{matching}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        if not full.exists():
            run("build", "demo", "--precision", "fp32", "--out", full)
        run("calibrate", full, "--matching", matching, "--out", folder)
    return folder / ARRAYS


def run(*arguments: object) -> None:
    """One nextscale command."""
    code = nextscale([str(argument) for argument in arguments])
    if code != 0:
        sys.exit(code)


def attentive_tokens(recipe: Recipe, theta: float | None, places: str | None, config: VARConfig) -> ShiftAndSum | None:
    """The recipe's shift-and-sum, if it has one: as told, or as the recorded rounding was learned with."""
    if recipe.attention.shift_and_sum == "off":
        return None
    known = recorded().get(recipe.name)
    if theta is None:
        if known is None or known.theta is None or known.places is None:
            raise click.UsageError(f"recipe {recipe.name} has shift-and-sum: give --theta (see `nextscale theta`)")
        return ShiftAndSum(recipe.attention.shift_and_sum, known.theta, known.places)
    allowed = (
        all_places([pn * pn for pn in config.patch_nums]) if places is None else tuple(map(int, places.split(",")))
    )
    return ShiftAndSum(recipe.attention.shift_and_sum, theta, allowed)


def show(recipe: str, step: Step) -> None:
    """A line at the end of each unit."""
    if step.step == step.steps:
        log(f"{recipe} {step.unit}: error {step.error:.4f} of nearest's, undecided {step.regularizer:.4f}")


def log(message: str) -> None:
    """Progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
