"""Streaming statistics of images as a feature network sees them: what FID and IS are computed from.

Nothing here knows the network: it is any callable that gives `Features`. Statistics can be merged, saved and continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import checked, read_npz
from nextscale.runtime._wording import shown_text
from nextscale.runtime.image_io import Writer

SPLITS = 10
# Of a covariance, as a share of its largest number.
ROUNDING = 1e-3
GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly, also where labels repeat with a period


@dataclass(frozen=True)
class Features:
    """What a feature network says of B images.

    Attributes:
        pooled: float32 [B, D], the features before the classifier.
        probabilities: float32 [B, K], the classifier's softmax.
    """

    pooled: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class ImageNetwork(Protocol):
    """A feature network: `FeatureNetwork`, `InceptionNetwork`, or one in a test.

    Attributes:
        name: weights and preprocessing; statistics of two names cannot be compared.
        metrics: how its FID and IS are called.
    """

    name: str
    metrics: tuple[str, str]

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of uint8 [B, H, W, 3], RGB."""


@dataclass(frozen=True)
class Gaussian:
    """Mean, float64 [D], and covariance, float64 [D, D], of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def checked(cls, path: Path, mean: NDArray[Any], covariance: NDArray[Any]) -> Gaussian:
        """Of a file's arrays.

        Raises:
            NextscaleError: they are no mean and covariance.
        """
        for name, array, axes in (("mean", mean, 1), ("covariance", covariance, 2)):
            if array.dtype.kind not in "fiu" or array.ndim != axes or not np.isfinite(array).all():
                raise NextscaleError(f"{path}: its {name} is not of finite numbers along {axes} axes")
        if not mean.size or covariance.shape != (len(mean), len(mean)):
            raise NextscaleError(
                f"{path}: its covariance is {list(covariance.shape)}, but its mean has {len(mean)} numbers"
            )
        return cls(mean.astype(np.float64), covariance.astype(np.float64))

    def is_of_features(self) -> bool:
        """Whether the covariance can be one: symmetric, and without eigenvalues below 0 but for rounding."""
        largest = np.abs(self.covariance).max()
        is_symmetric = np.abs(self.covariance - self.covariance.T).max() <= ROUNDING * largest
        return bool(is_symmetric and self._eigen[0].min() >= -ROUNDING * largest)

    @cached_property
    def _eigen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        eigenvalues, vectors = np.linalg.eigh(self.covariance)
        return eigenvalues, vectors

    @cached_property
    def factor(self) -> NDArray[np.float64]:
        """A [D, D] with A A^T = covariance; eigenvalues below 0 are rounding and taken as 0."""
        eigenvalues, vectors = self._eigen
        root: NDArray[np.float64] = vectors * np.sqrt(np.maximum(eigenvalues, 0))
        return root


@dataclass(frozen=True)
class ImageStatistics:
    """Moments of features and sums of probabilities over images; never changed in place, so always consistent.

    Images are dealt to S splits, which tell how exact IS is.

    Attributes:
        network: name of the feature network.
        count: number of images.
        mean: float64 [D].
        scatter: float64 [D, D], the sum of (x - mean)(x - mean)^T.
        split_counts: int64 [S], images of each split.
        split_probabilities: float64 [S, K], sums of p.
        split_negentropies: float64 [S], sums of sum_k p_k log p_k.
    """

    network: str
    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]
    split_counts: NDArray[np.int64]
    split_probabilities: NDArray[np.float64]
    split_negentropies: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features, network: str, first_image: int = 0) -> ImageStatistics:
        """Statistics of a batch whose images are first_image and those after it in their sequence."""
        x, p = features.pooled.astype(np.float64), features.probabilities.astype(np.float64)
        if not (np.isfinite(x).all() and np.isfinite(p).all()):
            last = first_image + len(x) - 1
            raise NextscaleError(f"{network}: features of images {first_image} to {last} are not finite")
        centered = x - x.mean(0)
        split = ((np.arange(first_image, first_image + len(x)) * GOLDEN_RATIO) % 1 * SPLITS).astype(np.int64)
        member = (split == np.arange(SPLITS)[:, None]).astype(np.float64)  # [S, B]
        negentropy = (p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(1)
        return cls(
            network=network,
            count=len(x),
            mean=x.mean(0),
            scatter=centered.T @ centered,
            split_counts=np.bincount(split, minlength=SPLITS),
            split_probabilities=member @ p,
            split_negentropies=member @ negentropy,
        )

    def merge(self, other: ImageStatistics) -> ImageStatistics:
        """Statistics of both sets of images (Chan, Golub and LeVeque, 1983).

        Raises:
            NextscaleError: they are of different networks.
        """
        if self.network != other.network:
            raise NextscaleError(f"statistics of {self.network} and of {other.network} cannot be merged")
        sizes, others = ((len(one.mean), one.split_probabilities.shape[1]) for one in (self, other))
        if sizes != others:
            raise NextscaleError(f"statistics of {sizes} and of {others} features and classes cannot be merged")
        count, delta = self.count + other.count, other.mean - self.mean
        weight = other.count / count
        return ImageStatistics(
            network=self.network,
            count=count,
            mean=self.mean + delta * weight,
            scatter=self.scatter + other.scatter + np.outer(delta, delta * (self.count * weight)),
            split_counts=self.split_counts + other.split_counts,
            split_probabilities=self.split_probabilities + other.split_probabilities,
            split_negentropies=self.split_negentropies + other.split_negentropies,
        )

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises:
            NextscaleError: one image has no covariance.
        """
        if self.count < 2:
            raise NextscaleError("one image has no covariance: expected at least 2 images")
        return Gaussian(self.mean, self.scatter / (self.count - 1))

    def writer(self, settings: Mapping[str, Any]) -> Writer:
        """Write an .npz that `read_statistics` reads; the settings say which images they are, as JSON."""
        arrays = {
            "settings": np.array(json.dumps(settings)),
            "network": np.array(self.network),
            "mean": self.mean,
            "scatter": pack_symmetric(self.scatter),
            "split_counts": self.split_counts,
            "split_probabilities": self.split_probabilities,
            "split_negentropies": self.split_negentropies,
        }
        return lambda file: np.savez(file, **arrays)  # type: ignore[arg-type]


def image_statistics(
    batches: Iterable[NDArray[np.uint8]],
    network: ImageNetwork,
    on_images: Callable[[int], object] = lambda done: None,
) -> ImageStatistics:
    """Statistics of images made anywhere.

    Args:
        batches: uint8 [B, H, W, 3] each, RGB; B may vary.
        network: the feature network.
        on_images: called with the number of images finished.
    Raises:
        NextscaleError: there are no images, or they are of another form.
    """
    statistics: ImageStatistics | None = None
    for images in batches:
        statistics = extended(statistics, images, network)
        on_images(statistics.count)
    if statistics is None:
        raise NextscaleError("no images to take statistics of")
    return statistics


def extended(statistics: ImageStatistics | None, images: NDArray[np.uint8], network: ImageNetwork) -> ImageStatistics:
    """`statistics`, or none yet, with the next images of the sequence, uint8 [B, H, W, 3], added."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise NextscaleError(f"images: expected uint8 [B, H, W, 3], found {images.dtype} {list(images.shape)}")
    batch = ImageStatistics.of(network(images), network.name, statistics.count if statistics else 0)
    return statistics.merge(batch) if statistics else batch


def read_statistics(path: Path) -> tuple[ImageStatistics, dict[str, Any]]:
    """What `ImageStatistics.writer` wrote, and its settings.

    Raises:
        NextscaleError: the file is missing, damaged or another.
    """
    arrays = read_npz(path)
    try:
        mean = checked(arrays, "mean", "f", (None,))
        triangle = checked(arrays, "scatter", "f", (len(mean) * (len(mean) + 1) // 2,))
        counts = checked(arrays, "split_counts", "iu", (SPLITS,))
        probabilities = checked(arrays, "split_probabilities", "f", (SPLITS, None))
        negentropies = checked(arrays, "split_negentropies", "f", (SPLITS,))
        if not len(mean) or counts.min() < 0 or not counts.any():
            raise ValueError("of no features, or of no images")
        if probabilities.min(initial=0) < 0 or (negentropies > counts).any():
            raise ValueError("split_probabilities or split_negentropies are of no probabilities")
        settings = json.loads(str(checked(arrays, "settings", "U", ())))
        if not isinstance(settings, dict):
            raise ValueError("its settings are none")
        statistics = ImageStatistics(
            network=str(checked(arrays, "network", "U", ())),
            count=int(counts.sum()),
            mean=mean,
            scatter=unpack_symmetric(triangle),
            split_counts=counts,
            split_probabilities=probabilities,
            split_negentropies=negentropies,
        )
        return statistics, settings
    except (ValueError, RecursionError) as error:
        raise NextscaleError(f"{path}: no image statistics ({shown_text(str(error), 200)})") from None


def pack_symmetric(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle, [D, D] -> [D (D + 1) / 2]."""
    return matrix[np.triu_indices(len(matrix))]


def unpack_symmetric(triangle: NDArray[Any]) -> NDArray[np.float64]:
    """The matrix of `pack_symmetric`, float64 [D, D]."""
    side = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix = np.zeros((side, side))
    matrix[np.triu_indices(side)] = triangle
    return matrix + np.triu(matrix, 1).T
