from __future__ import annotations

import math

import numpy as np
import pytest

from nextscale.evaluate.image_metrics import frechet_distance, image_metrics, inception_score
from nextscale.evaluate.image_statistics import Features, Gaussian, ImageStatistics
from nextscale.runtime._errors import NextscaleError


def statistics_of(x: np.ndarray, p: np.ndarray | None = None, network: str = "test") -> ImageStatistics:
    p = np.full((len(x), 2), 0.5) if p is None else p
    return ImageStatistics.of(Features(x.astype(np.float32), p.astype(np.float32)), network)


def random_gaussian(rng: np.random.Generator, side: int, rank: int) -> Gaussian:
    factor = rng.normal(0, 1, (side, rank))
    return Gaussian(rng.normal(0, 1, side), factor @ factor.T)


# Frechet distance


def test_diagonal_gaussians_have_a_closed_form() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    rng = np.random.default_rng(0)
    m1, m2, s1, s2 = rng.normal(0, 1, (2, 20)).tolist() + rng.uniform(0, 3, (2, 20)).tolist()
    found = frechet_distance(
        Gaussian(np.array(m1), np.diag(np.square(s1))), Gaussian(np.array(m2), np.diag(np.square(s2)))
    )
    expected = np.square(np.subtract(m1, m2)).sum() + np.square(np.subtract(s1, s2)).sum()
    assert found == pytest.approx(expected, rel=1e-12)


def test_general_gaussians_agree_with_the_eigenvalues_of_the_product() -> None:
    """tr (C1 C2)^1/2 as the sum of the roots of the eigenvalues of C1 C2, as others compute it."""
    rng = np.random.default_rng(1)
    first, second = random_gaussian(rng, 12, 30), random_gaussian(rng, 12, 30)
    roots = np.sqrt(np.linalg.eigvals(first.covariance @ second.covariance).real)
    expected = (
        np.square(first.mean - second.mean).sum() + np.trace(first.covariance + second.covariance) - 2 * roots.sum()
    )
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_two_dimensions_have_a_closed_form() -> None:
    """For 2x2, tr M^1/2 = sqrt(tr M + 2 sqrt(det M)) with M = C1 C2."""
    first, second = (Gaussian(np.zeros(2), np.array(c)) for c in ([[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]]))
    product = first.covariance @ second.covariance
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    assert frechet_distance(first, second) == pytest.approx(7 - 2 * root, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_the_distance_to_itself_is_0_whatever_the_rank(rank: int) -> None:
    """The bound is rounding of the traces: side * eps * trace, with a factor of 10."""
    gaussian = random_gaussian(np.random.default_rng(rank), 40, rank)
    bound = 10 * 40 * np.finfo(np.float64).eps * np.trace(gaussian.covariance)
    assert 0 <= frechet_distance(gaussian, gaussian) <= bound


def test_degenerate_covariances_in_different_directions() -> None:
    """Two point masses apart, and two lines at a right angle, which share nothing."""
    origin = Gaussian(np.zeros(3), np.zeros((3, 3)))
    assert frechet_distance(origin, Gaussian(np.array([3.0, 4, 0]), np.zeros((3, 3)))) == pytest.approx(25)
    first, second = (Gaussian(np.zeros(3), np.diag(variances)) for variances in ([4.0, 0, 0], [0, 9.0, 0]))
    assert frechet_distance(first, second) == pytest.approx(13)


def test_features_of_different_lengths_are_refused() -> None:
    with pytest.raises(NextscaleError, match="features of 2 and of 3 numbers cannot be compared"):
        frechet_distance(*(Gaussian(np.zeros(n), np.eye(n)) for n in (2, 3)))


# Inception score


def test_inception_score_of_known_probabilities() -> None:
    """Certain and evenly spread over K classes: K. All alike: 1."""
    classes = np.eye(8)[np.arange(240) % 8]
    found = inception_score(statistics_of(np.zeros((240, 1)), classes))
    assert found.value == pytest.approx(8)
    assert found.stderr < 0.1
    alike = inception_score(statistics_of(np.zeros((240, 1)), np.tile([0.5, 0.25, 0.25, 0], (240, 1))))
    assert alike.value == pytest.approx(1)
    assert alike.stderr == pytest.approx(0, abs=1e-7)


def test_inception_score_is_that_of_its_definition() -> None:
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.3), 200).astype(np.float32).astype(np.float64)
    kl = (p * np.log(np.maximum(p, 1e-300) / p.mean(0))).sum(1)
    assert inception_score(statistics_of(np.zeros((200, 1)), p)).value == pytest.approx(math.exp(kl.mean()), rel=1e-9)


def test_the_standard_error_is_that_of_repetition() -> None:
    """The jackknife's mean over 200 repetitions against their spread, which is known to 5%; 25% leaves 5 deviations."""
    rng = np.random.default_rng(2)
    scores = [
        inception_score(statistics_of(np.zeros((300, 1)), rng.dirichlet(np.full(5, 0.3), 300))) for _ in range(200)
    ]
    spread = np.std([score.value for score in scores], ddof=1)
    assert np.mean([score.stderr for score in scores]) == pytest.approx(spread, rel=0.25)


def test_one_image_has_no_standard_error() -> None:
    assert math.isnan(inception_score(statistics_of(np.zeros((1, 1)))).stderr)


# All figures


def test_figures_with_and_without_something_to_compare() -> None:
    rng = np.random.default_rng(0)
    own, other = statistics_of(rng.normal(0, 1, (20, 3))), statistics_of(rng.normal(1, 1, (20, 3)))
    alone = image_metrics(own)
    assert (alone.images, alone.fid, alone.fid_to_full_precision) == (20, None, None)
    both = image_metrics(own, other.gaussian, own)
    assert both.fid == pytest.approx(frechet_distance(own.gaussian, other.gaussian))
    assert both.fid_to_full_precision == pytest.approx(0, abs=1e-12)


def test_unequal_numbers_of_images_are_refused() -> None:
    with pytest.raises(NextscaleError, match="20 images through test cannot be compared with 19 through test"):
        image_metrics(statistics_of(np.zeros((20, 3))), full_precision=statistics_of(np.zeros((19, 3))))
