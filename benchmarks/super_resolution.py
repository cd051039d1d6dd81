"""Whether variations with kept stages enlarge small photographs better than bicubic interpolation does, by LPIPS.

    python benchmarks/super_resolution.py out/encoder/fp32 out/encoder/int8 --data photographs

Validation photographs of classes that the demo model knows are reduced, by the means of areas, and enlarged again by
bicubic interpolation. A bundle encodes what that gives; the tokens of the first stages are kept and the others made
anew, as `Generator.edit` does with `keep_stages`. The first bundle tries every setting on a few photographs; each of
the bundles enlarges other photographs with the setting that was best. Controls that know nothing of photographs are
judged beside them, lest a measure that likes any grain be taken for a better picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from demo_decoding import decoded, latents
from numpy.typing import NDArray
from PIL import Image
from progress import log
from provenance import provenance, publish

from nextscale.demo.photographs import SIDE, Photographs
from nextscale.evaluate.lpips import Lpips
from nextscale.evaluate.psnr import psnr
from nextscale.measure.statistics import mean_interval
from nextscale.models.var.sources import demo_source
from nextscale.runtime._edit import forced_tokens
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import DEFAULT_TOP_K
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import make_grid, picture_writer, write_files

Pictures = NDArray[np.uint8]
BATCH = 4
SIDES = (32, 16)
# Fewer kept stages have at most 5 tokens: of the photograph, little but its colours.
KEPT = range(3, 10)
BICUBIC, NEAREST, NOISE = "bicubic", "nearest neighbour", "bicubic and grey noise"
NOISE_DEVIATION = 8
ON_SHEET = 12


@dataclass(frozen=True)
class Sampling:
    """How tokens are made anew.

    Attributes:
        name: in tables.
        labelled: with the photograph's class, else the null class, of which guidance changes nothing.
        cfg_scale: guidance.
        top_k: 1 is greedy.
    """

    name: str
    labelled: bool
    cfg_scale: float
    top_k: int


SAMPLINGS = (
    Sampling("no class, greedy", False, 0, 1),
    Sampling("no class", False, 0, DEFAULT_TOP_K),
    Sampling("class, cfg 1.5, greedy", True, 1.5, 1),
    Sampling("class, cfg 1.5", True, 1.5, DEFAULT_TOP_K),
    Sampling("class, cfg 4, greedy", True, 4, 1),
    Sampling("class, cfg 4", True, 4, DEFAULT_TOP_K),
)


@dataclass(frozen=True)
class Task:
    """Photographs and what is left of them.

    Attributes:
        side: of the reduced photographs.
        photographs: uint8 [N, 64, 64, 3].
        labels: their classes.
        bicubic: the reduced ones enlarged, like `photographs`.
    """

    side: int
    photographs: Pictures
    labels: NDArray[np.int64]
    bicubic: Pictures

    def controls(self) -> dict[str, Pictures]:
        """Enlarged without a model."""
        small = resized(self.photographs, self.side, Image.Resampling.BOX)
        noise = np.random.default_rng(0).normal(0, NOISE_DEVIATION, (*self.bicubic.shape[:3], 1))
        return {
            BICUBIC: self.bicubic,
            NEAREST: resized(small, SIDE, Image.Resampling.NEAREST),
            NOISE: np.round(np.clip(self.bicubic + noise, 0, 255)).astype(np.uint8),
        }


def task_of(side: int, photographs: Pictures, labels: NDArray[np.int64]) -> Task:
    small = resized(photographs, side, Image.Resampling.BOX)
    return Task(side, photographs, labels, resized(small, SIDE, Image.Resampling.BICUBIC))


def resized(pictures: Pictures, side: int, by: Image.Resampling) -> Pictures:
    return np.stack([np.asarray(Image.fromarray(picture).resize((side, side), by)) for picture in pictures])


def encoded(generator: Generator, pictures: Pictures) -> NDArray[np.int64]:
    return np.concatenate([generator.encode(part) for part in np.split(pictures, range(BATCH, len(pictures), BATCH))])


def varied(
    generator: Generator, maps: NDArray[np.int64], labels: NDArray[np.int64], kept: int, sampling: Sampling
) -> Pictures:
    """What `Generator.edit` makes of each picture with `keep_stages`, from their token maps."""
    model = generator.bundle.model
    return generator.generate(
        labels if sampling.labelled else np.full(len(labels), model.num_classes),
        forced_tokens=forced_tokens(maps, None, kept, model),
        cfg_scale=sampling.cfg_scale,
        top_k=sampling.top_k,
        batch_size=BATCH,
    ).images


@click.command(help=__doc__)
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the photographs' shards.")
@click.option("--tried", type=click.IntRange(2), default=6, show_default=True, help="Photographs for every setting.")
@click.option("--pictures", type=click.IntRange(2), default=200, show_default=True, help="For the best settings.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="A picture of some photographs and all made of them.")
def main(bundles: tuple[Path, ...], data: Path, tried: int, pictures: int, threads: int, sheet: Path | None) -> None:
    photographs = Photographs.load(data)
    images, labels = photographs.val.permute(0, 2, 3, 1).numpy(), photographs.val_labels.numpy()
    known = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
    chosen = {"tried": known[:tried], "judged": known[tried : tried + pictures]}
    lpips = Lpips("alex", threads=threads)
    generators = [Generator(path, SessionOptions(threads=threads, spinning=False)) for path in bundles]
    lines = [
        "# Super-resolution by variation, against bicubic interpolation",
        "",
        *provenance(threads),
        f"- {lpips.name}, lower is better; means and paired differences to bicubic with 95% intervals",
        f"- validation photographs of the demo model's classes, {SIDE} pixels; top_k {DEFAULT_TOP_K} where not greedy",
    ]
    lines_of_sheet = list[Pictures]()
    for side in SIDES:
        trial, final = (task_of(side, images[places], labels[places]) for places in chosen.values())
        lines += ["", f"## From {side} pixels", ""]
        best, table = tried_settings(generators[0], trial, lpips)
        lines += [f"Every setting with `{bundles[0]}`, {tried} photographs: LPIPS less bicubic's.", "", *table]
        lines += ["", f"The best of them, {len(final.photographs)} other photographs.", ""]
        made = enlarged(generators, final, *best)
        lines += judged(made, final.photographs, lpips)
        lines_of_sheet += [final.photographs, *made.values()]
    publish("super_resolution", lines)
    if sheet is not None:
        columns = min(ON_SHEET, pictures)
        cells = np.concatenate([line[:columns] for line in lines_of_sheet])
        write_files({sheet: picture_writer(sheet, make_grid(cells, columns), {})})


def tried_settings(generator: Generator, task: Task, lpips: Lpips) -> tuple[tuple[int, Sampling], list[str]]:
    """The setting of least LPIPS, and a table of all: a line for each number of kept stages."""
    maps, bicubic = encoded(generator, task.bicubic), lpips(task.photographs, task.bicubic)
    differences = dict[tuple[int, Sampling], NDArray[np.float32]]()
    for kept in KEPT:
        for sampling in SAMPLINGS:
            made = varied(generator, maps, task.labels, kept, sampling)
            differences[kept, sampling] = lpips(task.photographs, made) - bicubic
        log(f"{task.side} pixels, {kept} stages kept")
    lines = [
        f"| stages kept | {' | '.join(sampling.name for sampling in SAMPLINGS)} |",
        "|---" * (1 + len(SAMPLINGS)) + "|",
        *(
            f"| {kept} | {' | '.join(with_interval(differences[kept, sampling]) for sampling in SAMPLINGS)} |"
            for kept in KEPT
        ),
    ]
    return min(differences, key=lambda setting: float(differences[setting].mean())), lines


def enlarged(generators: Sequence[Generator], task: Task, kept: int, sampling: Sampling) -> dict[str, Pictures]:
    """The photographs by name of what enlarged them: the controls, and each bundle with this setting."""
    quantizer, made = demo_source("demo").vqvae.quantize, task.controls()
    for generator in generators:
        name = f"{generator.bundle.manifest.recipe['name']}, {generator.ops.variant}"
        log(f"{task.side} pixels, {name}")
        maps = encoded(generator, task.bicubic)
        made[f"{name}: all tokens kept"] = decoded(generator, latents(torch.from_numpy(maps), quantizer), BATCH)
        made[f"{name}: {kept} stages kept, {sampling.name}"] = varied(generator, maps, task.labels, kept, sampling)
    return made


def judged(made: Mapping[str, Pictures], photographs: Pictures, lpips: Lpips) -> list[str]:
    distances = {name: lpips(photographs, pictures) for name, pictures in made.items()}
    return [
        "| enlarged by | LPIPS | less bicubic's | PSNR, dB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {found.mean():.3f} | {'' if name == BICUBIC else with_interval(found - distances[BICUBIC])} | "
            f"{psnr(photographs, made[name]):.2f} |"
            for name, found in distances.items()
        ),
    ]


def with_interval(differences: NDArray[np.float32]) -> str:
    found = mean_interval(differences.tolist())
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
