"""Reconstruct the demo model by several recipes, one after the other; recipes whose artifact lies in OUT are skipped.

Each finished recipe leaves OUT/{recipe}.safetensors and a line of figures in OUT/figures.jsonl, and on stdout.
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

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var.checkpoint import load_models
from nextscale.simulation.reconstruct import ReconstructionSettings, Step, reconstruct
from nextscale.simulation.simulated_attention import all_places

DEFAULTS = ReconstructionSettings()
DEMO = Path(__file__).parent.parent / "demo"
FIGURES = ("kept", "kl_nearest", "kl_reconstructed", "kl_reconstructed_stderr", "top1_nearest", "top1_reconstructed")


@click.command()
@click.option("--recipes", required=True, help="Names or files, separated by commas.")
@click.option("--token-maps", type=click.Path(path_type=Path), required=True, help="An .npz, without matching.")
@click.option("--matched-maps", type=click.Path(path_type=Path), help="For recipes with calibration.matching.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of the artifacts.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda:K.")
@click.option("--iterations", type=int, default=DEFAULTS.iterations, show_default=True)
@click.option("--batch", type=int, default=DEFAULTS.batch_size, show_default=True)
@click.option("--images", type=int, help="Use the first N token maps.")
@click.option("--theta", type=float, default=0.01, show_default=True, help="Of shift-and-sum.")
@click.option("--places", help="Attentive tokens a stage, separated by commas.  [default: no limit]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--demo", type=click.Path(path_type=Path), default=DEMO, help="Where the demo model's weights lie.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of torch on the CPU.")
def main(
    recipes: str,
    token_maps: Path,
    matched_maps: Path | None,
    out: Path,
    device: str,
    iterations: int,
    batch: int,
    images: int | None,
    theta: float,
    places: str | None,
    seed: int,
    demo: Path,
    threads: int,
) -> None:
    """Reconstruct each recipe."""
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    out.mkdir(parents=True, exist_ok=True)
    var, vqvae = load_models(demo / "var.safetensors", demo / "vae.safetensors")
    var, quantizer = var.to(device), vqvae.quantize.to(device)
    settings = replace(DEFAULTS, iterations=iterations, batch_size=batch, seed=seed)
    for name in recipes.split(","):
        recipe = load_recipe(name)
        artifact = out / f"{recipe.name}.safetensors"
        if artifact.exists():
            log(f"{recipe.name}: done already")
            continue
        maps = token_maps if recipe.calibration.matching == "none" else matched_maps
        if maps is None:
            raise click.UsageError(f"{recipe.name} calibrates on matched token maps: give --matched-maps")
        with np.load(maps) as file:
            labels, tokens = (file[array][:images].astype(np.int64) for array in ("class_labels", "token_maps"))
        shift_and_sum = None
        if recipe.attention.shift_and_sum != "off":
            allowed = all_places(var.config) if places is None else tuple(map(int, places.split(",")))
            shift_and_sum = ShiftAndSum(recipe.attention.shift_and_sum, theta, allowed)
        began, work = time.monotonic(), out / f"{recipe.name}.partial"
        rounding = reconstruct(
            var,
            quantizer,
            recipe,
            labels,
            tokens,
            settings,
            shift_and_sum=shift_and_sum,
            work=work,
            on_step=lambda step, name=recipe.name: show(name, step),
        )
        rounding.save(artifact)
        shutil.rmtree(work)
        figures = {"recipe": recipe.name, "iterations": iterations, "images": len(labels), "token_maps": maps.name}
        figures |= {key: rounding.report[key] for key in FIGURES}
        figures |= {"theta": theta if shift_and_sum else None, "seconds": round(time.monotonic() - began, 1)}
        line = json.dumps(figures)
        with (out / "figures.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def show(recipe: str, step: Step) -> None:
    """A line at the end of each unit."""
    if step.step == step.steps:
        log(f"{recipe} {step.unit}: error {step.error:.4f} of nearest's, undecided {step.regularizer:.4f}")


def log(message: str) -> None:
    """Progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
