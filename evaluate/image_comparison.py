"""Image metrics of several bundles of one model, over one or more seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.evaluate.generated_statistics import Sampling, TextSampling, generated_statistics
from nextscale.evaluate.image_metrics import ImageMetrics, image_metrics
from nextscale.evaluate.image_statistics import ImageNetwork, ImageStatistics
from nextscale.evaluate.reference_statistics import Reference
from nextscale.measure.statistics import Interval, mean_interval
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions


@dataclass(frozen=True)
class MetricsRow:
    """One bundle's figures.

    Attributes:
        bundle: its folder.
        role: "full precision", "noise floor" (full precision from other seeds) or "bundle".
        seeds: of its pictures.
        metrics: for each seed.
    """

    bundle: Path
    role: str
    seeds: tuple[int, ...]
    metrics: tuple[ImageMetrics, ...]

    def interval(self, figure: str) -> Interval | None:
        """Mean over seeds of "inception_score", "fid" or "fid_to_full_precision", and its 95% interval (Student's t).

        None where the figure was not asked for; the ends are NaN for one seed.
        """
        values = [getattr(metrics, figure) for metrics in self.metrics]
        if figure == "inception_score":
            values = [score.value for score in values]
        return None if None in values else mean_interval(values)


@dataclass(frozen=True)
class Job:
    """Pictures of one bundle to make: a row of the table."""

    bundle: Bundle
    role: str
    seeds: tuple[int, ...]


def compare_images(
    bundles: Sequence[Bundle],
    network: ImageNetwork,
    work: Path,
    *,
    full_precision: Bundle | None = None,
    noise_floor: bool = False,
    reference: Reference | None = None,
    images: int = 5000,
    seeds: Sequence[int] = (0,),
    sampling: Sampling | TextSampling | None = None,
    batch_size: int = 8,
    options: SessionOptions | None = None,
    on_images: Callable[[Job, int, int], object] = lambda job, seed, done: None,
) -> list[MetricsRow]:
    """Make every bundle's pictures, or go on with those in `work`, and measure them.

    Args:
        bundles: to measure, of one model.
        network: the feature network.
        work: folder of the statistics, see `generated_statistics`.
        full_precision: bundle to measure the distance to, seed by seed: its pictures start from the same labels or
            prompts and the same uniforms, so the distance of an equal bundle is 0.
        noise_floor: also measure full precision from as many other seeds (those after the largest).
        reference: real images.
        images: of each bundle and seed.
        seeds: one or more.
        sampling: guidance and filters, and prompts of bundles of text; its seed is not used.
        on_images: called with the job, the seed and the number of its images finished.
    Raises:
        NextscaleError: bundles of different models, or a reference of other images or of another network.
    """
    jobs = _jobs(bundles, full_precision, noise_floor, tuple(seeds))
    for job in jobs:
        if reference is not None:
            reference.require_comparable(network.name, _side(job.bundle, sampling))
    rows, originals = [], []
    for job in jobs:
        found = _statistics(job, network, work, sampling or Sampling(), images, batch_size, options, on_images)
        metrics = []
        for number, statistics in enumerate(found):
            if job.role == "full precision":
                originals.append(statistics)
            compared = originals[number] if originals and job.role != "full precision" else None
            metrics.append(image_metrics(statistics, reference.gaussian if reference else None, compared))
        rows.append(MetricsRow(job.bundle.path, job.role, job.seeds, tuple(metrics)))
    return rows


def floor_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Of full precision's pictures that the noise floor is measured with: as many others, after the largest."""
    return tuple(max(seeds) + 1 + number for number in range(len(seeds)))


def as_json(rows: Sequence[MetricsRow], network: ImageNetwork) -> list[dict[str, Any]]:
    """Plain numbers and lists, for a JSON file; None is no number."""
    fid, score = network.metrics
    figures = {score: "inception_score", fid: "fid", f"{fid} to full precision": "fid_to_full_precision"}
    return [
        {
            "bundle": str(row.bundle),
            "role": row.role,
            "seeds": list(row.seeds),
            "images": row.metrics[0].images,
            f"{score} standard errors": [_number(m.inception_score.stderr) for m in row.metrics],
            **{name: _figure(row, figure) for name, figure in figures.items()},
        }
        for row in rows
    ]


def _jobs(
    bundles: Sequence[Bundle], full_precision: Bundle | None, noise_floor: bool, seeds: tuple[int, ...]
) -> list[Job]:
    """Full precision first, since the others are compared with it."""
    jobs = []
    if full_precision is not None:
        jobs.append(Job(full_precision, "full precision", seeds))
        if noise_floor:
            jobs.append(Job(full_precision, "noise floor", floor_seeds(seeds)))
    known = full_precision.path.resolve() if full_precision else None
    jobs += [Job(bundle, "bundle", seeds) for bundle in bundles if bundle.path.resolve() != known]
    for job in jobs:
        if job.bundle.manifest.models != jobs[0].bundle.manifest.models:
            raise NextscaleError(
                f"{job.bundle.path}: not the model of {jobs[0].bundle.path}; compare bundles of one model"
            )
    return jobs


def _side(bundle: Bundle, sampling: Sampling | TextSampling | None) -> int:
    """Of the pictures, in pixels, which a reference's are compared with."""
    return bundle.manifest.models[sampling.size if isinstance(sampling, TextSampling) else 0].image_side


def _statistics(
    job: Job,
    network: ImageNetwork,
    work: Path,
    sampling: Sampling | TextSampling,
    images: int,
    batch_size: int,
    options: SessionOptions | None,
    on_images: Callable[[Job, int, int], object],
) -> Iterator[ImageStatistics]:
    """Statistics for each seed; the bundle's graphs are freed after the last."""
    generator = Generator(job.bundle, options)
    for seed in job.seeds:
        yield generated_statistics(
            generator,
            network,
            replace(sampling, seed=seed),
            work,
            images=images,
            batch_size=batch_size,
            on_images=lambda done, seed=seed: on_images(job, seed, done),  # type: ignore[misc]
        )


def _figure(row: MetricsRow, figure: str) -> dict[str, Any] | None:
    interval = row.interval(figure)
    if interval is None:
        return None
    values = [getattr(metrics, figure) for metrics in row.metrics]
    return {
        "mean": interval.mean,
        "low": _number(interval.low),
        "high": _number(interval.high),
        "by_seed": [value.value for value in values] if figure == "inception_score" else values,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
