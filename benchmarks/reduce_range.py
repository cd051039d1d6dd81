"""What CPUs without VNNI cost the demo model, and what --reduce-range costs and saves.

Full precision samples token maps on this CPU; each bundle is fed them, on this CPU and on an emulated one without VNNI
(Debian's qemu-user), whose ONNX Runtime takes the kernels that saturate. Bundles are kept in WORK.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from progress import log
from provenance import provenance, publish
from recipe_bundles import FULL_PRECISION, RecipeBundles

from nextscale.evaluate.psnr import psnr
from nextscale.evaluate.teacher_forced import Agreement, evaluation_labels, kl_divergence, summarize, teacher_forced
from nextscale.graph_passes.recipe import load_recipe
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions

RECIPE = "default"
EMULATOR = ("qemu-x86_64", "-cpu", "Haswell")
WORKER = "--feed"


@dataclass(frozen=True)
class Fed:
    """What a bundle makes of token maps.

    Attributes:
        logits: float32 [N, L, V].
        images: uint8 [N, H, W, 3].
    """

    logits: NDArray[np.float32]
    images: NDArray[np.uint8]


def build(work: Path, options: SessionOptions) -> list[str]:
    """Make the bundles that are not there; the candidates' names."""
    bundles = RecipeBundles(work, options)
    bundles.build(load_recipe(FULL_PRECISION))
    return [bundles.build(load_recipe(RECIPE), reduce_range=reduce_range) for reduce_range in (False, True)]


def feed(bundle: Path, maps: Path, out: Path, threads: int) -> None:
    """Feed the token maps of the file `maps` to a bundle, an image at a time; the result is the file `out`."""
    given, generator = np.load(maps), Generator(bundle, SessionOptions(threads=threads))
    logits, images = [], []
    for label, tokens in zip(given["labels"], given["tokens"], strict=True):
        stages = list(generator.stream([label], forced_tokens=tokens[None], outputs=["logits"]))
        logits.append(np.concatenate([stage.outputs["logits"] for stage in stages], axis=1))
        images.append(stages[-1].preview())
    np.savez(out, logits=np.concatenate(logits), images=np.concatenate(images))


def fed(emulator: tuple[str, ...], bundle: Path, maps: Path, threads: int) -> Fed:
    """The same in a process of its own, under the emulator if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fed.npz"
        command = [*emulator, sys.executable, __file__, WORKER, str(bundle), str(maps), str(out), str(threads)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL if emulator else None)
        found = np.load(out)
        return Fed(found["logits"], found["images"])


def agreement(expected: Fed, found: Fed, sizes: NDArray[np.float64]) -> Agreement:
    """Of the logits, over the images."""
    ends = np.cumsum(sizes).astype(int)[:-1]
    kl, same = kl_divergence(expected.logits, found.logits), expected.logits.argmax(-1) == found.logits.argmax(-1)
    by_stage = [
        np.stack([part.sum(1) for part in np.split(figure.astype(np.float64), ends, axis=1)], axis=1)
        for figure in (kl, same)
    ]
    return summarize(*by_stage, sizes)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/reduce_range"), show_default=True)
@click.option("--images", type=click.IntRange(2), default=64, show_default=True, help="On this CPU.")
@click.option("--emulated-images", type=click.IntRange(2), default=8, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
def main(work: Path, images: int, emulated_images: int, threads: int) -> None:
    """Build, compare, print and keep the results."""
    if shutil.which(EMULATOR[0]) is None:
        raise click.ClickException(f"{EMULATOR[0]} is not installed; it is in Debian's package qemu-user")
    work.mkdir(parents=True, exist_ok=True)
    options = SessionOptions(threads=threads)
    candidates = build(work, options)
    reference = Generator(work / FULL_PRECISION, options)
    log("comparing on this CPU")
    here = teacher_forced(
        reference,
        {name: Generator(work / name, options) for name in candidates},
        images=images,
        on_images=lambda done: log("images", done, images),
    )
    labels = evaluation_labels(reference.bundle.model.num_classes, emulated_images, seed=1)
    sizes = np.array([pn * pn for pn in reference.bundle.model.patch_nums], np.float64)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder) / "maps.npz"
        np.savez(maps, labels=labels, tokens=reference.generate(labels, seed=1, batch_size=1).token_maps)
        expected = fed((), work / FULL_PRECISION, maps, threads)
        for name in candidates:
            for cpu, emulator in (("this", ()), ("emulated", EMULATOR)):
                log(f"{name} on the {cpu} CPU")
                found = fed(emulator, work / name, maps, threads)
                its = agreement(expected, found, sizes)
                rows.append(
                    f"| {name} | {cpu} | {its.kl:.4f} ± {its.kl_stderr:.4f} | {its.top1:.1%} "
                    f"| {psnr(expected.images, found.images):.1f} |"
                )
    publish(
        "reduce_range",
        [
            "# CPUs without VNNI, and --reduce-range: the demo model",
            "",
            *provenance(threads),
            f"- emulated CPU: `{' '.join(EMULATOR)}`, AVX2 without VNNI",
            "- KL in nats per token and top-1 against full precision, on token maps that it samples at cfg_scale 4",
            "",
            f"On this CPU, {images} images:",
            "",
            "| bundle | KL | top-1 | layers that can saturate |",
            "|---|---|---|---|",
            *(
                f"| {name} | {its.kl:.4f} ± {its.kl_stderr:.4f} | {its.top1:.1%} | {_saturating(work / name)} |"
                for name, its in here.items()
            ),
            "",
            f"On both, {emulated_images} images; PSNR is of the pictures of the same tokens, against full precision:",
            "",
            "| bundle | CPU | KL | top-1 | PSNR, dB |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


def _saturating(folder: Path) -> str:
    found = Bundle.open(folder).manifest.recipe["saturation"]
    return f"{len(found['can_saturate'])} of {found['products']}"


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        feed(*map(Path, sys.argv[2:5]), int(sys.argv[5]))
    else:
        main()
