"""How far a bundle's decoder is from full precision's: the same token maps decoded by both.

PSNR says how much pixels differ; the distance between both sets of pictures, as FID-E measures it, what a feature
network makes of that. Times are of interleaved runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from numpy.typing import NDArray
from provenance import provenance, publish

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_metrics import frechet_distance
from nextscale.evaluate.image_statistics import image_statistics
from nextscale.evaluate.psnr import psnr
from nextscale.measure.interleaved import ORDER, interleave, timed
from nextscale.measure.statistics import ratio_interval
from nextscale.models.sources import demo_source
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BATCH = 8


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--token-maps", type=click.Path(path_type=Path), required=True, help="`nextscale calibrate`'s folder.")
@click.option("--first", type=int, default=128, show_default=True, help="The first map, beyond those calibrated on.")
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Timed, one picture each.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(reference: Path, bundles: tuple[Path, ...], token_maps: Path, first: int, rounds: int, threads: int) -> None:
    """Compare the decoders of BUNDLES of the demo model with that of REFERENCE."""
    source, options = demo_source("demo"), SessionOptions(threads=threads)
    maps = torch.from_numpy(TokenMaps.load(token_maps, source.model_info()).token_maps[first:])
    sizes = [pn * pn for pn in source.vqvae.quantize.patch_nums]
    with torch.no_grad():
        f_hat = source.vqvae.quantize.accumulate(maps.split(sizes, dim=1))[0].numpy()
    opened = [Bundle.open(path) for path in (reference, *bundles)]
    sessions = [open_session(one.graph_path("decoder"), one.manifest.graphs["decoder"], options) for one in opened]

    def decode(session: InferenceSession, part: slice) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = session.run(["images"], {"f_hat": f_hat[part]})[0]
        return images

    def picture(session: InferenceSession) -> Callable[[int], float]:
        return timed(lambda done: decode(session, slice(done, done + 1)))

    times = interleave({place: picture(session) for place, session in enumerate(sessions)}, repetitions=rounds)
    network = FeatureNetwork("cpu", threads)
    parts = [slice(i, i + BATCH) for i in range(0, len(f_hat), BATCH)]
    pictures = [np.concatenate([decode(session, part) for part in parts]) for session in sessions]
    gaussians = [image_statistics([images], network).gaussian for images in pictures]
    lines = [
        "# Integer decoders against full precision",
        "",
        *provenance(threads),
        f"- {len(f_hat)} token maps of the demo model, decoded by both; FID-E is between both sets of pictures",
        f"- times of one picture, {rounds} rounds, {ORDER}",
        "",
        "| bundle | PSNR, dB | FID-E between them | time over full precision's |",
        "|---|---|---|---|",
    ]
    for place, (path, images, gaussian) in enumerate(zip(bundles, pictures[1:], gaussians[1:], strict=True), 1):
        ratio = ratio_interval(times[place], times[0])
        lines.append(
            f"| {path.name} | {psnr(pictures[0], images):.2f} | {frechet_distance(gaussian, gaussians[0]):.2f} | "
            f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] |"
        )
    publish("decoder_fidelity", lines)


if __name__ == "__main__":
    main()
