"""What Tables 1 and 4 measure of bundles: their pictures as sets, and how near their tokens are to full precision's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate._kept_figures import bundle_sha256, file_of, kept_file, number_or_nan, read_json
from nextscale.evaluate.generated_statistics import Sampling, finished_images
from nextscale.evaluate.image_comparison import Job, MetricsRow, compare_images, floor_seeds
from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.reference_statistics import Reference
from nextscale.evaluate.teacher_forced import Agreement, teacher_forced
from nextscale.measure.statistics import Interval
from nextscale.paper._estimated_time import picture_seconds
from nextscale.paper._plan import COMPARED, PICTURES, Pace, PlannedStep
from nextscale.paper._rows import NOISE_FLOOR, saturation_line
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import write_files

# Bundles that are compared at once, so that they share full precision's work and not too much memory.
TOGETHER = 5
# Of a normal distribution, the 97.5% quantile.
Z = 1.959964
# Of the token maps that are compared: calibration's and the pictures' seeds are others.
COMPARED_SEED = 1

OnImages = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        images: pictures of each bundle and seed.
        seeds: of the pictures.
        sampling: guidance and filters; its seed is not used.
        compared: token maps for the KL; 0: it is not measured.
        batch_size: pictures at a time.
    """

    images: int
    seeds: tuple[int, ...]
    sampling: Sampling
    compared: int
    batch_size: int


def pictures_folder(figures: Path, images: int) -> Path:
    """Where, in a store's folder of figures, those of so many pictures are kept."""
    return figures / f"pictures-{images}"


@dataclass(frozen=True)
class Nearness:
    """Nats per token of KL(full precision || bundle), fed full precision's tokens, with its 95% interval; and the share
    of tokens whose likeliest entry is the same."""

    kl: Interval
    top1: float


@dataclass(frozen=True)
class Quality:
    """A row's figures.

    Attributes:
        name: the recipe's, or "noise floor".
        metrics: of the pictures.
        nearness: None of full precision, and where it was not asked for.
        warning: a line, where this processor does not compute the row's integer products exactly.
    """

    name: str
    metrics: MetricsRow
    nearness: Nearness | None
    warning: str | None

    def score(self) -> Interval | None:
        """IS, or IS-E: of one seed with the standard error over its pictures."""
        found = self.metrics.interval("inception_score")
        if found is None or not math.isnan(found.low):
            return found
        half = Z * self.metrics.metrics[0].inception_score.stderr
        return Interval(found.mean, found.mean - half, found.mean + half)


def measure_quality(
    bundles: Sequence[RecipeBundle],
    network: ImageNetwork,
    asked: Asked,
    work: Path,
    *,
    reference: Reference | None,
    options: SessionOptions,
    on_images: OnImages,
) -> list[Quality]:
    """Full precision, full precision with other seeds, then the others; an earlier call's figures are gone on with.

    Args:
        bundles: of one model of classes, full precision first.
        network: of features.
        asked: how much.
        work: an existing folder that keeps the figures.
        reference: real pictures; None: no distance to such.
        options: threads, memory and operators.
        on_images: told what is made of which row, and how many of how many are finished.
    Raises:
        NextscaleError: the bundles are of several models, or the reference of others than their pictures.
    """
    original, *others = bundles
    names = {item.bundle.path: item.name for item in bundles}
    nearness = _nearness(original.bundle, others, asked, work, options, on_images) if asked.compared else {}

    def told(job: Job, seed: int, done: int) -> None:
        floor = " (another seed)" if job.role == NOISE_FLOOR else ""
        on_images(f"{names[job.bundle.path]}{floor}: drawing, seed {seed}", done, asked.images)

    measured = compare_images(
        [item.bundle for item in others],
        network,
        work,
        full_precision=original.bundle,
        noise_floor=True,
        reference=reference,
        images=asked.images,
        seeds=asked.seeds,
        sampling=asked.sampling,
        batch_size=asked.batch_size,
        options=options,
        on_images=told,
    )
    warnings = {item.name: saturation_line(item.name, Generator(item.bundle, options)) for item in bundles}
    found = []
    for row in measured:
        name = NOISE_FLOOR if row.role == NOISE_FLOOR else names[row.bundle]
        found.append(Quality(name, row, nearness.get(name), warnings.get(name)))
    return found


def require_reference(reference: Reference, network: ImageNetwork, model: ModelInfo) -> None:
    """Refuse statistics of real pictures that the model's cannot be compared with, before any are drawn.

    Raises:
        NextscaleError: they are of pictures of another size, or of another network.
    """
    reference.require_comparable(network.name, model.image_side)
    found, expected = len(reference.gaussian.mean), network(_blank(model)).pooled.shape[1]
    if found != expected:
        raise NextscaleError(
            f"the reference has {found} features, but {network.name} gives {expected}: it is of another network"
        )


def _blank(model: ModelInfo) -> NDArray[np.uint8]:
    return np.zeros((1, model.image_side, model.image_side, 3), np.uint8)


def plan_quality(
    rows: Sequence[RecipeBundle | UnbuiltBundle],
    network: ImageNetwork,
    asked: Asked,
    work: Path,
    options: SessionOptions,
) -> list[PlannedStep]:
    """What `measure_quality` has left to do; a batch is drawn with each bundle that has.

    Args:
        rows: full precision first.
        network, asked, options: as for `measure_quality`.
        work: as there; it need not exist.
    """
    original, *others = rows

    def batch(item: RecipeBundle) -> float:
        return picture_seconds(Generator(item.bundle, options), network, asked.batch_size, asked.sampling)

    def pictures(item: RecipeBundle | UnbuiltBundle, seeds: Sequence[int]) -> int:
        """That are left."""
        done = 0
        if isinstance(item, RecipeBundle):
            generator = Generator(item.bundle, options)
            done = sum(finished_images(generator, network, replace(asked.sampling, seed=seed), work) for seed in seeds)
        return asked.images * len(seeds) - done

    def is_compared(item: RecipeBundle | UnbuiltBundle) -> bool:
        if isinstance(original, UnbuiltBundle) or isinstance(item, UnbuiltBundle):
            return False
        return _nearness_file(original.bundle, Generator(item.bundle, options), asked, work).exists()

    pace = Pace(original, batch)
    steps = [
        pace.step(original, {PICTURES: pictures(original, asked.seeds)}),
        pace.step(original, {PICTURES: pictures(original, floor_seeds(asked.seeds))}, name=NOISE_FLOOR),
    ]
    for item in others:
        compared = 0 if is_compared(item) else asked.compared
        steps.append(pace.step(item, {PICTURES: pictures(item, asked.seeds), COMPARED: compared}))
    return steps


def _nearness(
    original: Bundle,
    others: Sequence[RecipeBundle],
    asked: Asked,
    work: Path,
    options: SessionOptions,
    on_images: OnImages,
) -> dict[str, Nearness]:
    """By recipe: what an earlier call left in `work`, or else measured."""
    paths = {item.name: _nearness_file(original, Generator(item.bundle, options), asked, work) for item in others}
    pending = [item for item in others if not paths[item.name].exists()]
    reference = Generator(original, options)  # loads its graphs when they are needed
    for first in range(0, len(pending), TOGETHER):
        together = {item.name: Generator(item.bundle, options) for item in pending[first : first + TOGETHER]}
        told = f"{', '.join(together)}: comparing tokens"
        compared = teacher_forced(
            reference,
            together,
            images=asked.compared,
            seed=COMPARED_SEED,
            cfg_scale=asked.sampling.cfg_scale,
            batch_size=asked.batch_size,
            on_images=lambda done, told=told: on_images(told, done, asked.compared),  # type: ignore[misc]
        )
        for name, of_one in compared.items():
            write_nearness(paths[name], of_one)
    return {name: read_nearness(path) for name, path in paths.items()}


def _nearness_file(original: Bundle, generator: Generator, asked: Asked, work: Path) -> Path:
    settings = {
        "reference": bundle_sha256(original),
        "operators": generator.ops.variant,
        "images": asked.compared,
        "seed": COMPARED_SEED,
        "cfg_scale": asked.sampling.cfg_scale,
    }
    return file_of(generator.bundle, work, settings, "{bundle}-{digest}-agreement.json")


def write_nearness(path: Path, compared: Agreement) -> None:
    """Keep what `read_nearness` reads."""
    text = json.dumps({name: getattr(compared, name) for name in ("kl", "kl_stderr", "top1")}) + "\n"
    write_files({path: lambda file: file.write(text.encode())})


def read_nearness(path: Path) -> Nearness:
    """What an earlier call measured.

    Raises:
        NextscaleError: the file is damaged.
    """
    with kept_file(path, "compare that bundle again"):
        found = read_json(path)
        kl, half, top1 = found["kl"].number(), Z * number_or_nan(found["kl_stderr"]), found["top1"].number()
    return Nearness(Interval(kl, kl - half, kl + half), top1)
