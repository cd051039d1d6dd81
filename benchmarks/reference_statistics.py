"""Make the reference statistics of `nextscale-demo` from the demo model's validation photographs, and check them.

Only moments of features are kept, from which no photograph can be had back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from provenance import provenance, publish
from torch import Tensor

from nextscale.demo.photographs import SIDE, Photographs
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_metrics import frechet_distance, inception_score
from nextscale.evaluate.image_statistics import ImageStatistics, image_statistics, read_statistics
from nextscale.evaluate.reference_statistics import read_reference, reference_writer
from nextscale.runtime.image_io import write_files

BATCH = 32
PACKAGE = Path(__file__).parents[1] / "demo" / "nextscale-demo" / "nextscale_demo"
SHIPPED = PACKAGE / "photograph_statistics.npz"


def batches(images: Tensor) -> Iterator[NDArray[np.uint8]]:
    """uint8 [N, 3, H, W] as uint8 [B, H, W, 3] at a time."""
    for part in images.split(BATCH):
        yield part.permute(0, 2, 3, 1).contiguous().numpy()


def statistics_of(images: Tensor, network: FeatureNetwork, kept: Path) -> ImageStatistics:
    """Statistics of uint8 [N, 3, H, W], or those that an earlier run kept."""
    if not kept.exists():
        statistics = image_statistics(batches(images), network, lambda done: print(f"{done} images", file=sys.stderr))
        write_files({kept: statistics.writer({"image_size": SIDE})})
    statistics, _ = read_statistics(kept)
    if (statistics.network, statistics.count) != (network.name, len(images)):
        raise click.UsageError(f"{kept}: of other images or another network; delete it")
    return statistics


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the photographs' shards.")
@click.option("--check-images", type=int, default=5000, show_default=True, help="Training photographs to check with.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/reference"), help="Keeps full statistics.")
@click.option("--out", type=click.Path(path_type=Path), default=SHIPPED)
def main(data: Path, check_images: int, device: str, threads: int, work: Path, out: Path) -> None:
    """Measure, store, read back, and tell what storing cost."""
    photographs = Photographs.load(data)
    network = FeatureNetwork(device, threads)
    work.mkdir(parents=True, exist_ok=True)
    real = statistics_of(photographs.val[photographs.val_labels >= 0], network, work / "validation.npz")
    out.parent.mkdir(exist_ok=True)
    write_files({out: reference_writer(real, SIDE)})
    stored = read_reference(out).gaussian

    order = np.random.default_rng(0).permutation(len(photographs.train))[:check_images]
    check = statistics_of(photographs.train[order], network, work / f"training_{check_images}.npz")
    exact_fid, stored_fid = (frechet_distance(check.gaussian, of) for of in (real.gaussian, stored))
    eigenvalues = np.linalg.eigvalsh(real.gaussian.covariance)
    leading = eigenvalues[-300:].sum() / eigenvalues.sum()
    score = inception_score(real)
    publish(
        "reference_statistics",
        [
            "# Reference statistics of the demo model's validation photographs",
            "",
            *provenance(threads),
            f"- {real.count} photographs of {SIDE} pixels, {network.name}, on {device}",
            "",
            "| figure | value |",
            "|---|---|",
            f"| size of the file | {out.stat().st_size / 1e6:.2f} MB |",
            f"| share of the variance in 300 of {len(eigenvalues)} directions | {leading:.1%} |",
            f"| Fréchet distance of stored to exact | {frechet_distance(real.gaussian, stored):.5f} |",
            f"| FID-E of {check_images} training photographs, exact statistics | {exact_fid:.5f} |",
            f"| FID-E of the same, stored statistics | {stored_fid:.5f} |",
            f"| IS-E of the {real.count} photographs | {score.value:.2f} ± {score.stderr:.2f} |",
        ],
    )


if __name__ == "__main__":
    main()
