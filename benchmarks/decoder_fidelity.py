"""How far a bundle's decoder is from full precision's: the same token maps decoded by both.

PSNR says how much pixels differ; the distance between both sets of pictures, as FID-E measures it, what a feature
network makes of that, and FID-E to photographs, less full precision's, what it costs. Times are of interleaved runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from demo_decoding import FULL_PRECISION, contenders, decoded, latents
from provenance import provenance, publish
from torch import Tensor

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.demo.photographs import Photographs
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_metrics import frechet_distance
from nextscale.evaluate.image_statistics import image_statistics
from nextscale.evaluate.psnr import psnr
from nextscale.evaluate.reference_statistics import read_demo_reference
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.statistics import ratio_interval
from nextscale.models.var.sources import demo_source
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions

BATCH = 8


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--token-maps", type=click.Path(path_type=Path), help="`nextscale calibrate`'s folder.")
@click.option("--first", type=int, default=128, show_default=True, help="The first map, beyond those calibrated on.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of photographs' shards, to encode instead.")
@click.option("--pictures", type=click.IntRange(2), default=5000, show_default=True, help="Of these.")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed, one picture each.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(
    reference: Path,
    bundles: tuple[Path, ...],
    token_maps: Path | None,
    first: int,
    data: Path | None,
    pictures: int,
    rounds: int,
    threads: int,
) -> None:
    """Compare the decoders of BUNDLES of the demo model with that of REFERENCE."""
    source, options = demo_source("demo"), SessionOptions(threads=threads)
    torch.set_num_threads(threads)
    if (token_maps is None) == (data is None):
        raise click.UsageError("give one of --token-maps and --data")
    if data is not None:
        maps = encoded_photographs(data, pictures, source.vqvae)
    else:
        assert token_maps is not None
        maps = torch.from_numpy(TokenMaps.load(token_maps, source.model_info()).token_maps[first:])
    f_hat = latents(maps, source.vqvae.quantize)
    compared = contenders(reference, bundles, options)

    def picture(generator: Generator) -> Callable[[int], float]:
        return timed(lambda done: generator.decode(f_hat[done : done + 1]))

    times = interleave({label: picture(one) for label, one in compared.items()}, repetitions=rounds)
    network = FeatureNetwork("cpu", threads)
    made = [decoded(one, f_hat, BATCH) for one in compared.values()]
    gaussians = [image_statistics([images], network).gaussian for images in made]
    photographs = read_demo_reference().gaussian
    from_photographs = [frechet_distance(gaussian, photographs) for gaussian in gaussians]
    lines = [
        "# Integer decoders against full precision",
        "",
        *provenance(threads),
        f"- {len(f_hat)} token maps of the demo model, decoded by both"
        + ("" if data is None else ", of validation photographs, encoded in full precision"),
        f"- FID-E to photographs: full precision's {from_photographs[0]:.2f}, and how much more a bundle's is",
        f"- times of one picture, {rounds} rounds, {ORDER}",
        "",
        "| bundle | operators | PSNR, dB | FID-E between them | FID-E to photographs | time over full precision's |",
        "|---|---|---|---|---|---|",
    ]
    for place, label in enumerate([*compared][1:], 1):
        ratio = ratio_interval(times[label], times[FULL_PRECISION])
        lines.append(
            f"| {' | '.join(label)} | {psnr(made[0], made[place]):.2f} | "
            f"{frechet_distance(gaussians[place], gaussians[0]):.2f} | "
            f"{from_photographs[place] - from_photographs[0]:+.2f} | "
            f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] |"
        )
    publish("decoder_fidelity", lines)


def encoded_photographs(data: Path, pictures: int, vqvae: VQVAE) -> Tensor:
    """Token maps int64 [N, L] of the first validation photographs."""
    images = Photographs.load(data).val[:pictures]
    parts = [torch.cat(vqvae.encode(part.float() / 127.5 - 1), dim=1) for part in images.split(BATCH)]
    return torch.cat(parts)


if __name__ == "__main__":
    main()
