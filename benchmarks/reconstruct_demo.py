"""Learn a demo model's roundings by several recipes, one after the other: demo's are those of benchmarks/roundings.

Each finished recipe leaves OUT/{recipe}.safetensors and a line of figures in OUT/figures.jsonl, and on stdout; one that
lies in OUT is skipped, and the units of one that was interrupted are not learned again. Token maps are sampled, and
thetas chosen, once into WORK/MODEL; with `--prepare` nothing more is done, so that a machine with a GPU only learns.
Another CPU or GPU rounds sums otherwise, so that some bits differ there (benchmarks/roundings/README.md).
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import click
import torch
from learned_roundings import ROUNDINGS
from learned_roundings import recorded as records

from nextscale.calib_data.subjects import SampledImages
from nextscale.compiler._families import family_of
from nextscale.compiler._theta import theta_of_recipe
from nextscale.compiler.build import build_bundle
from nextscale.compiler.family import Family
from nextscale.compiler.options import BuildOptions
from nextscale.demo.emoji.bundle import demo_source as emoji_source
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.sources import Source
from nextscale.models.var.sources import demo_source
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.simulation.reconstruct import ReconstructionSettings, Step, reconstruct
from nextscale.simulation.simulated_attention import all_places

DEFAULTS = ReconstructionSettings(iterations=800)  # as the recorded ones
SOURCES: dict[str, Callable[[str], Source]] = {"demo": demo_source, "emoji": emoji_source}
FIGURES = ("kept", "kl_nearest", "kl_reconstructed", "kl_reconstructed_stderr", "top1_nearest", "top1_reconstructed")


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--recipes", required=True, help="Names or files, separated by commas.")
@click.option("--model", type=click.Choice(list(SOURCES)), default="demo")
@click.option("--out", type=click.Path(path_type=Path), default=ROUNDINGS, help="The folder of the files to make.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/reconstruct"), help="Of the preparations.")
@click.option("--prepare", is_flag=True, help="Only sample token maps and choose thetas.", show_default=False)
@click.option("--device", default="cpu", help="cpu, or cuda:K.")
@click.option("--iterations", type=int, default=DEFAULTS.iterations)
@click.option("--batch", type=int, default=DEFAULTS.batch_size)
@click.option("--images", type=int, help="Token maps to use.  [default: all 256]", show_default=False)
@click.option(
    "--theta",
    type=float,
    help="Of shift-and-sum.  [default: demo's recorded one, emoji's within the recipe's budget]",
    show_default=False,
)
@click.option(
    "--places",
    help="With --theta: attentive tokens per stage, separated by commas.  [default: no limit]",
    show_default=False,
)
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=int, default=1, help="Of torch on the CPU.")
def main(
    recipes: str,
    model: str,
    out: Path,
    work: Path,
    prepare: bool,
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
    source = SOURCES[model](model)
    settings = replace(DEFAULTS, iterations=iterations, batch_size=batch, seed=seed)
    preparing = Preparing(source, work / model)
    for name in recipes.split(","):
        recipe = load_recipe(name)
        artifact = out / f"{recipe.name}.safetensors"
        if artifact.exists():
            log(f"{recipe.name}: done already")
            continue
        maps = preparing.token_maps(recipe)
        shift_and_sum = attentive_tokens(recipe, theta, places, preparing, recorded=model == "demo")
        if prepare:
            continue
        family = family_of(source)
        for module in family.modules():
            module.to(device)
        seen = family.teacher_forced_images(maps)
        seen = seen[: len(seen) if images is None else images]
        began, partial = time.monotonic(), out / f"{recipe.name}.partial"
        rounding = reconstruct(
            seen,
            recipe,
            settings,
            shift_and_sum=shift_and_sum,
            work=partial,
            on_step=lambda step, name=recipe.name: show(name, step),
        )
        rounding.save(artifact)
        shutil.rmtree(partial)
        for module in family.modules():
            module.to("cpu")
        figures = {"recipe": recipe.name, "iterations": iterations, "images": len(seen)}
        figures |= {key: rounding.report[key] for key in FIGURES}
        figures |= {"theta": shift_and_sum and shift_and_sum.theta, "seconds": round(time.monotonic() - began, 1)}
        line = json.dumps(figures)
        with (out / "figures.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


@dataclass(frozen=True)
class Preparing:
    """What full precision tells before anything is learned: each is made once, in the folder."""

    source: Source
    work: Path

    @cached_property
    def family(self) -> Family:
        return family_of(self.source)

    @cached_property
    def full_precision(self) -> Bundle:
        folder = self.work / "fp32"
        if not folder.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            build_bundle(self.source, folder, BuildOptions(load_recipe("fp32"), encoder=False), lambda *_: None)
        return Bundle.open(folder)

    def token_maps(self, recipe: Recipe) -> SampledImages:
        """The recipe's number of images, matched as it says."""
        calibration = recipe.calibration
        folder = self.work / f"maps-{calibration.matching}-{calibration.images}"
        if not folder.exists():
            log(f"sampling {folder.name}")
            partial = folder.with_name(f"{folder.name}.partial")
            generator = Generator(self.full_precision)
            self.family.sample(generator, BuildOptions(recipe), partial, lambda *_: None).save(folder)
            shutil.rmtree(partial)
        return self.family.load_sampled(folder)

    def shift_and_sum(self, recipe: Recipe) -> ShiftAndSum:
        """theta within the recipe's budget, and its places."""
        assert recipe.attention.shift_and_sum != "off"
        path = self.work / f"theta-{recipe.name}.json"
        if not path.exists():
            log(f"choosing theta of {recipe.name}")
            maps, options = self.token_maps(recipe), BuildOptions(recipe)
            choice = theta_of_recipe(self.family, self.full_precision, maps, options, lambda *_: None)
            path.write_text(json.dumps({"theta": choice.theta, "places": choice.rows}), encoding="utf-8")
        values = json.loads(path.read_bytes())
        return ShiftAndSum(recipe.attention.shift_and_sum, values["theta"], tuple(values["places"]))


def attentive_tokens(
    recipe: Recipe, theta: float | None, places: str | None, preparing: Preparing, *, recorded: bool
) -> ShiftAndSum | None:
    """The recipe's shift-and-sum, if it has one: as told, as the recorded rounding was learned with, or as chosen."""
    form = recipe.attention.shift_and_sum
    if form == "off":
        return None
    if theta is not None:
        stages = preparing.source.model_info().stage_sizes
        allowed = all_places(list(map(math.prod, stages))) if places is None else tuple(map(int, places.split(",")))
        return ShiftAndSum(form, theta, allowed)
    if not recorded:
        return preparing.shift_and_sum(recipe)
    known = records().get(recipe.name)
    if known is None or known.theta is None or known.places is None:
        raise click.UsageError(f"recipe {recipe.name} has shift-and-sum: give --theta (see `nextscale theta`)")
    return ShiftAndSum(form, known.theta, known.places)


def show(recipe: str, step: Step) -> None:
    """A line at the end of each unit."""
    if step.step == step.steps:
        log(f"{recipe} {step.unit}: error {step.error:.4f} of nearest's, undecided {step.regularizer:.4f}")


def log(message: str) -> None:
    """Progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
