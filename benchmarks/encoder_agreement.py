"""How far a bundle's encoder is from full precision's: token maps of the demo model's validation photographs.

PSNR is that of the round trip, from a photograph to tokens and back by the bundle's own encoder and decoder. Times are
of interleaved runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from demo_decoding import FULL_PRECISION, contenders, decoded, latents
from numpy.typing import NDArray
from progress import log
from provenance import provenance, publish

from nextscale.demo.photographs import Photographs
from nextscale.evaluate.psnr import psnr
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.statistics import ratio_interval
from nextscale.models.var.sources import demo_source
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions

BATCH = 16


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the photographs' shards.")
@click.option("--pictures", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--round-trips", type=click.IntRange(1), default=500, show_default=True, help="The first of them.")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed, one picture each.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--name", default="encoder_agreement", show_default=True, help="Of the result file.")
def main(
    reference: Path,
    bundles: tuple[Path, ...],
    data: Path,
    pictures: int,
    round_trips: int,
    rounds: int,
    threads: int,
    name: str,
) -> None:
    photographs = Photographs.load(data).val.permute(0, 2, 3, 1).numpy()
    chosen = np.sort(np.random.default_rng(0).choice(len(photographs), pictures, replace=False))
    images = np.ascontiguousarray(photographs[chosen])
    compared = contenders(reference, bundles, SessionOptions(threads=threads))
    times = interleave({label: encoding(one, images) for label, one in compared.items()}, repetitions=rounds)
    maps = {label: encoded(label, one, images) for label, one in compared.items()}
    quantizer = demo_source("demo").vqvae.quantize
    decibels = {
        label: psnr(
            images[:round_trips],
            decoded(one, latents(torch.from_numpy(maps[label][:round_trips]), quantizer), BATCH),
        )
        for label, one in compared.items()
    }
    full_precision = maps[FULL_PRECISION]
    model = compared[FULL_PRECISION].bundle.model
    lines = [
        "# Encoders against full precision",
        "",
        *provenance(threads),
        f"- {pictures} validation photographs of the demo model; times of one, {rounds} rounds, {ORDER}",
        f"- stages of {model.stages_in_words}; round trips of {min(round_trips, pictures)}",
        "",
        "| bundle | operators | tokens equal | mean of stages | worst | by stage | round trip, dB | time |",
        "|---|---|---|---|---|---|---|---|",
        f"| full precision | stock | | | | | {decibels[FULL_PRECISION]:.2f} | |",
    ]
    for label, found in list(maps.items())[1:]:
        equal = found == full_precision
        stages = [float(equal[:, part].mean()) for part in model.stage_slices]
        ratio = ratio_interval(times[label], times[FULL_PRECISION])
        lines.append(
            f"| {' | '.join(label)} | {equal.mean():.1%} | {np.mean(stages):.1%} | {min(stages):.1%} | "
            f"{', '.join(f'{share:.0%}' for share in stages)} | {decibels[label]:.2f} | "
            f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] |"
        )
    publish(name, lines)


def encoding(generator: Generator, images: NDArray[np.uint8]) -> Callable[[int], float]:
    return timed(lambda done: generator.encode(images[done : done + 1]))


def encoded(label: tuple[str, str], generator: Generator, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    token_maps: list[NDArray[np.int64]] = []
    for part in np.split(images, range(BATCH, len(images), BATCH)):
        token_maps.append(generator.encode(part))
        log(f"{' '.join(label)}:", sum(map(len, token_maps)), len(images))
    return np.concatenate(token_maps)


if __name__ == "__main__":
    main()
