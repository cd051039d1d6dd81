"""Build a preset with random weights and print each step: `build_memory.py` starts it and watches its memory.

    python benchmarks/build_memory_worker.py SETTINGS

SETTINGS are those below, as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nextscale.compiler import build
from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.infinity.presets import PRESETS
from nextscale.models.infinity.sources import random_source as random_infinity_source
from nextscale.models.sources import Source
from nextscale.models.var.sources import random_source as random_var_source
from nextscale.paper.throughput_bundles import briefly_calibrated
from nextscale.runtime._session import SessionOptions

# What is printed beside the build's own steps: what comes before them, behind them, and the bytes of the weights.
SOURCE, BUILT, WEIGHTS = "filling the model", "built", "weights "


@dataclass(frozen=True)
class Settings:
    """What to build: pn are the areas of an Infinity, with commas between; images those of calibration."""

    preset: str
    pn: str
    recipe: str
    images: int
    as_large: bool
    encoder: bool
    threads: int
    out: str


def main(settings: Settings) -> None:
    if settings.as_large:
        build.MOST_COPIED = 0
    source, modules = random_model(settings.preset, settings.pn.split(","))
    print(WEIGHTS + str(sum(tensor.nbytes for module in modules for tensor in module.parameters())))
    recipe = load_recipe(settings.recipe)
    if recipe.precision != "fp32":
        recipe = briefly_calibrated(recipe, settings.images)
    session = SessionOptions(threads=settings.threads)
    options = BuildOptions(recipe, session=session, batch_size=1, encoder=settings.encoder)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    build.build_bundle(source, out, options, lambda step, done=0, total=0: print(step))
    print(BUILT)


def random_model(preset: str, areas: list[str]) -> tuple[Source, tuple[nn.Module, ...]]:
    """A preset of either family, and its modules."""
    if preset in PRESETS:
        infinity = random_infinity_source(preset, preset, areas, ["1:1"], seed=0)
        return infinity, (infinity.infinity, infinity.vae)
    var = random_var_source(preset, preset, seed=0)
    return var, (var.var, var.vqvae)


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
