"""What editing a picture costs over generating one: the encoder, the mask and the seam beside the whole.

    python benchmarks/edit_cost.py --threads 2 --minutes 5    # VAR-d16 with random weights
    python benchmarks/edit_cost.py --model demo

A bundle of the recipe `default` with an encoder is built into WORK, unless it is there. In each round its stock and,
where they can run, its fused graphs generate one picture and edit one, with the same class, seed and guidance, and both
also encode the picture alone; all in one process. The picture is made up: time does not depend on what it shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from progress import log
from provenance import RESULTS, circumstances, provenance, publish

from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.provenance import finite
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.models.var.sources import demo_digests, demo_source, random_source
from nextscale.paper.store import Store
from nextscale.paper.throughput_bundles import ModelOrigin, ThroughputBundles
from nextscale.runtime._edit import blend, box_mask, default_feather, forced_tokens, latent_mask, pixel_mask
from nextscale.runtime._manifest import ModelInfo, Size
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._variants import each_variant

RECIPE = "default"
BOX = (0.25, 0.25, 0.75, 0.75)
CLASS, CFG_SCALE = 0, 4.0
GENERATE, EDIT, ENCODE, ARITHMETIC = "generate", "edit", "encode", "mask and seam"
CALIBRATION_IMAGES = 2  # speed does not depend on the ranges


def smooth_picture(size: Size) -> NDArray[np.uint8]:
    """Waves of colour, uint8 [H, W, 3]."""
    y, x = (np.linspace(0, 2 * np.pi, side) for side in size)
    waves = np.stack(np.broadcast_arrays(np.sin(y)[:, None], np.cos(x), np.sin(x + y[:, None])), axis=-1)
    return np.round(127.5 + 127.5 * waves).astype(np.uint8)


def turns(generator: Generator) -> dict[str, Callable[[int], float]]:
    """What is timed of one variant; the number of the round is the seed."""
    model = generator.bundle.model
    image, mask = smooth_picture(model.image_size), pixel_mask(box_mask(model.latent_size, BOX), model)
    tokens = generator.encode(image[None])

    def arithmetic(done: int) -> None:
        forced_tokens(tokens, latent_mask(mask, model), 0, model)
        blend(image, image[None], mask, default_feather(model))

    return {
        GENERATE: timed(lambda done: generator.generate([CLASS], seed=done, cfg_scale=CFG_SCALE)),
        EDIT: timed(lambda done: generator.edit(image, mask, [CLASS], seed=done, cfg_scale=CFG_SCALE)),
        ENCODE: timed(lambda done: generator.encode(image[None])),
        ARITHMETIC: timed(arithmetic),
    }


@click.command(help=__doc__)
@click.option("--model", default="var-d16", show_default=True, help="A preset, with random weights, or demo.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--ops-library", default="", help="nextscale-ops, where it is not the installed one.")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="With --minutes, at most.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="After which no round begins.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/edit_cost"), show_default=True)
@click.option("--name", help="Of the result files.  [default: edit_cost_MODEL]")
def main(
    model: str, threads: int, ops_library: str, rounds: int, minutes: float | None, work: Path, name: str | None
) -> None:
    options = SessionOptions(threads=threads, ops_library=ops_library)
    bundles = ThroughputBundles(origin(model), Store(work), None, CALIBRATION_IMAGES, options, encoder=True)
    [row], _ = bundles.build([load_recipe(RECIPE)], log)
    variants = {variant.ops: turns(Generator(row.bundle, variant)) for variant in each_variant(row.bundle, options)}
    seconds = interleave(
        {(ops, part): turn for ops, parts in variants.items() for part, turn in parts.items()},
        repetitions=rounds,
        minutes=minutes,
        log=log,
    )
    by_variant = {ops: {part: seconds[ops, part] for part in parts} for ops, parts in variants.items()}
    counted = len(next(iter(seconds.values())))
    name = name or f"edit_cost_{model}"
    publish(name, [*heading(row.bundle.model, model, threads, counted), *table(by_variant)])
    document = {
        **circumstances({"model": model, "threads": threads, "rounds": counted, "cfg_scale": CFG_SCALE, "box": BOX}),
        "seconds": by_variant,
        "edit_over_generate": {ops: asdict(over(found, EDIT)) for ops, found in by_variant.items()},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(finite(document), indent=1) + "\n", encoding="utf-8")


def origin(model: str) -> ModelOrigin:
    if model == "demo":
        return ModelOrigin({"name": "demo", **demo_digests()}, lambda: demo_source("demo"), random=False)
    description = {"name": model, "weights": "random", "seed": 0}
    return ModelOrigin(description, lambda: random_source(model, model, 0), random=True)


def heading(info: ModelInfo, model: str, threads: int, rounds: int) -> list[str]:
    height, width = info.image_size
    weights = "" if model == "demo" else ", random weights"
    return [
        f"# What editing costs over generating: {model}",
        "",
        *provenance(threads),
        f"- recipe `{RECIPE}`{weights}, {height} x {width} pixels, one picture, both guided rows (cfg_scale "
        f"{CFG_SCALE:g}); of an edit the middle half of each side is made anew",
        f"- {rounds} rounds, {ORDER}",
        "- ratios are of the same round: geometric mean and 95% interval; seconds are means",
        "",
    ]


def table(by_variant: dict[str, dict[str, list[float]]]) -> list[str]:
    """A line for each variant: the whole, then its parts over the same generation."""
    lines = [
        "| operators | generate, s | edit, s | edit over generate | encoder over generate | encoder, ms | "
        "mask and seam, ms |",
        "|---" * 7 + "|",
    ]
    for ops, found in by_variant.items():
        mean = {part: mean_interval(samples).mean for part, samples in found.items()}
        lines.append(
            f"| {ops} | {mean[GENERATE]:.3f} | {mean[EDIT]:.3f} | {shown(over(found, EDIT))} | "
            f"{shown(over(found, ENCODE))} | {1e3 * mean[ENCODE]:.0f} | {1e3 * mean[ARITHMETIC]:.1f} |"
        )
    return lines


def over(found: dict[str, list[float]], part: str) -> Interval:
    return ratio_interval(found[part], found[GENERATE])


def shown(ratio: Interval) -> str:
    return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


if __name__ == "__main__":
    main()
