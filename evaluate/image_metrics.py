"""FID and IS from statistics of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.image_statistics import Gaussian, ImageStatistics
from nextscale.runtime._errors import NextscaleError


@dataclass(frozen=True)
class InceptionScore:
    """The score over all images, and its standard error by the jackknife over the splits; NaN where images are few."""

    value: float
    stderr: float


@dataclass(frozen=True)
class ImageMetrics:
    """Figures of one bundle's images of one seed.

    Attributes:
        images: their number.
        inception_score: IS-E, or by Inception IS.
        fid: against the reference statistics; None without any.
        fid_to_full_precision: against full precision's images (FID2FP16 in the paper's Table 1); None without any.
    """

    images: int
    inception_score: InceptionScore
    fid: float | None
    fid_to_full_precision: float | None


def image_metrics(
    statistics: ImageStatistics, reference: Gaussian | None = None, full_precision: ImageStatistics | None = None
) -> ImageMetrics:
    """The figures of `statistics`.

    Args:
        statistics: of the images to judge, at least 2.
        reference: moments of real images.
        full_precision: of full precision's images, of the same number.
    Raises:
        NextscaleError: there is one image, or the other moments are of another network or number of images.
    """
    if full_precision is not None and (full_precision.network, full_precision.count) != (
        statistics.network,
        statistics.count,
    ):
        raise NextscaleError(
            f"{statistics.count} images through {statistics.network} cannot be compared with "
            f"{full_precision.count} through {full_precision.network}"
        )
    own = statistics.gaussian
    return ImageMetrics(
        images=statistics.count,
        inception_score=inception_score(statistics),
        fid=None if reference is None else frechet_distance(own, reference),
        fid_to_full_precision=None if full_precision is None else frechet_distance(own, full_precision.gaussian),
    )


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """FID: |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2 (Heusel et al., 2017, Eq. 6; Dowson and Landau).

    The last trace is the sum of the singular values of A^T B for any A A^T = C1 and B B^T = C2. No root of an
    eigenvalue near 0 is taken after the product, so it is exact for covariances without full rank too.

    Raises:
        NextscaleError: the features are of different lengths.
    """
    if first.mean.shape != second.mean.shape:
        raise NextscaleError(f"features of {len(first.mean)} and of {len(second.mean)} numbers cannot be compared")
    difference = first.mean - second.mean
    shared = np.linalg.svd(first.factor.T @ second.factor, compute_uv=False).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    distance = float(difference @ difference + traces - 2 * shared)
    if not math.isfinite(distance):
        raise NextscaleError(f"the distance of these features is {distance}: they are too large, or no numbers")
    return max(0.0, distance)


def inception_score(statistics: ImageStatistics) -> InceptionScore:
    """IS = exp(mean_x KL(p(y|x) || p(y))) (Salimans et al., 2016) over all images, not the mean over splits."""
    counts, negentropies = statistics.split_counts, statistics.split_negentropies
    probabilities = statistics.split_probabilities
    total_p, total_negentropy = probabilities.sum(0), float(negentropies.sum())
    value = _inception_score(statistics.count, total_p, total_negentropy)
    used = np.flatnonzero(counts)
    if len(used) < 2:
        return InceptionScore(value, math.nan)
    without = np.array(
        [
            _inception_score(
                statistics.count - counts[s], total_p - probabilities[s], total_negentropy - negentropies[s]
            )
            for s in used
        ]
    )
    return InceptionScore(value, math.sqrt((len(used) - 1) * without.var()))


def _inception_score(count: int, probabilities: NDArray[np.float64], negentropy: float) -> float:
    mean = np.maximum(probabilities / count, np.finfo(np.float64).tiny)
    return math.exp(negentropy / count - float((mean * np.log(mean)).sum()))
