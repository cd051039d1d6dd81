"""How far each peer is from full precision on the demo model, in KL and top-1, over images that all are given alike.

    python benchmarks/peer_agreement.py --work out/table-c/peers [--images 8] [--peer NAME]…

The peers must be set up (`python -m nextscale.measure.peers.setup --work out/table-c/peers`). The reference,
pytorch-fp32, samples token maps; every peer is forced along them, so that differences do not pile up. Pictures are
decoded of the same tokens. Their difference is in levels of 255, a mean over pixels. Prints Markdown.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from nextscale.evaluate.teacher_forced import kl_divergence
from nextscale.measure.contender import Worker
from nextscale.measure.peers import NAMES, peers
from nextscale.models.var.sources import demo_source
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine

REFERENCE = "pytorch-fp32"


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--images", type=click.IntRange(2), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(0), default=2, show_default=True)
@click.option("--peer", "names", multiple=True, type=click.Choice(NAMES), help="All, if it is not given.")
def main(work: Path, images: int, threads: int, names: tuple[str, ...]) -> None:
    chosen = [name for name in names or NAMES if name != REFERENCE]
    machine = describe_machine()
    click.echo(f"{machine.cpu}, {' '.join(machine.isa)}; demo model, {images} teacher-forced images at cfg_scale 4")
    click.echo("\n| peer | KL | standard error | top-1 | pixels |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        reference, *others = peers(demo_source("demo"), work, threads, [REFERENCE, *chosen])
        wanted = []
        with Worker(reference) as worker:
            for seed in range(images):
                wanted.append(draw(worker, seed, Path(folder)))
                np.save(Path(folder) / f"{seed}.npy", wanted[-1]["token_maps"])
        for peer in others:
            try:
                with Worker(peer) as worker:
                    found = [draw(worker, seed, Path(folder), forced=True) for seed in range(images)]
            except NextscaleError as error:
                click.echo(f"| {peer.name} | {str(error).replace('|', '/')} | | | |")
                continue
            pairs = list(zip(wanted, found, strict=True))
            kl = np.array([kl_divergence(p["logits"], q["logits"]).mean() for p, q in pairs])
            top1 = np.mean([(p["logits"].argmax(-1) == q["logits"].argmax(-1)).mean() for p, q in pairs])
            pixels = np.mean([np.abs(p["images"].astype(int) - q["images"]).mean() for p, q in pairs])
            stderr = kl.std(ddof=1) / np.sqrt(images)
            click.echo(f"| {peer.name} | {kl.mean():.4f} | {stderr:.4f} | {top1:.1%} | {pixels:.2f} |")


def draw(worker: Worker, seed: int, folder: Path, *, forced: bool = False) -> dict[str, Any]:
    """What a peer's process saves of one image."""
    more = {"save": str(folder / "drawn.npz")} | ({"forced": str(folder / f"{seed}.npy")} if forced else {})
    worker.request(1, seed, **more)
    with np.load(folder / "drawn.npz") as arrays:
        return dict(arrays)


if __name__ == "__main__":
    main()
