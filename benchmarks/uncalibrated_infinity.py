"""Write an int8 bundle of an Infinity with random weights whose ranges are made up: for its speed and memory alone.

    python benchmarks/uncalibrated_infinity.py --preset infinity-2b --area 1M out/uncalibrated

Nothing is run in full precision, nor is that written: a model that does not fit beside its keys and values can be
measured (`infinity_stage_times.py`) on a machine that could not calibrate it. Pictures are noise of noise. The decoder
is float; what its integer form takes is in results/infinity_vae_memory.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from progress import log

from nextscale.compiler._caches import with_decided_cache
from nextscale.compiler._rounders import weight_rounder
from nextscale.compiler.infinity_family import InfinityFamily
from nextscale.compiler.options import BuildOptions
from nextscale.compiler.write_bundle import write_bundle
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.pipeline import StagePlan, fuse_stage, quantize_stage
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.infinity.presets import PRESETS
from nextscale.models.infinity.schedules import AREAS
from nextscale.models.infinity.sources import random_source

END = 4.0  # of all ranges, of what is about normal


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(list(PRESETS)), default="infinity-2b", show_default=True)
@click.option("--area", type=click.Choice(list(AREAS)), default="1M", show_default=True)
@click.option("--cache", type=click.Choice(["auto", "float", "integer"]), default="auto", show_default=True)
def main(out: Path, preset: str, area: str, cache: str) -> None:
    log("filling the model")
    family = InfinityFamily(random_source(preset, preset, [area], ["1:1"], seed=0))
    recipe = load_recipe("default")
    recipe = replace(recipe, attention=replace(recipe.attention, cache=cache))
    recipe = with_decided_cache(recipe, family.bundle_info({}))
    integer = IntegerModel.decide(recipe, family.facts())
    ends = np.full(max(size.num_stages for size in family.source.sizes), END, np.float32)
    made_up = Range(-ends, ends)
    ranges = dict.fromkeys(integer.static, made_up) | dict(integer.known)
    pairs = {name: PairRanges(made_up, made_up) for name in integer.pairs}
    plan = StagePlan(integer, ranges, pairs, weight_rounder(BuildOptions(recipe)))
    with torch.no_grad():
        log("quantizing")
        stage, decoder = family.stage_graph(), family.decoder_graph()
        stock = quantize_stage(stage, plan)
        fused = family.as_run(fuse_stage(stage, plan, stock))
        log("writing")
        out.mkdir(parents=True)
        graphs = ({"stage": family.as_run(stock), "decoder": decoder}, {"stage": fused, "decoder": decoder})
        write_bundle(family, out, graphs[0], recipe.as_dict() | {"cache": recipe.attention.cache}, graphs[1])


if __name__ == "__main__":
    main()
