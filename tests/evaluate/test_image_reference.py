"""Reference statistics: their stored forms, and the shipped ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.image_metrics import frechet_distance
from nextscale.evaluate.image_statistics import Features, ImageStatistics
from nextscale.evaluate.reference_statistics import CODES, read_demo_reference, read_reference, reference_writer
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime.image_io import write_files

D = 30


@pytest.fixture
def statistics() -> ImageStatistics:
    """Features whose variances fall by half from one direction to the next."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(0, 1, (D, D)))[0]
    x = rng.normal(0, 1, (500, D)) * 2.0 ** (-np.arange(D) / 2) @ directions + rng.normal(0, 1, D)
    return ImageStatistics.of(Features(x.astype(np.float32), np.ones((500, 1), np.float32)), "test")


def test_the_compact_form_is_near_the_exact_one(statistics: ImageStatistics, tmp_path: Path) -> None:
    """A correlation moves by half a code at most, float32 by 2^-24 of each deviation."""
    path = tmp_path / "reference.npz"
    write_files({path: reference_writer(statistics, 64)})
    reference, exact = read_reference(path), statistics.gaussian
    assert (reference.network, reference.image_size, reference.images) == ("test", 64, 500)
    deviations = np.sqrt(np.diag(exact.covariance))
    bound = np.outer(deviations, deviations) * (0.5 / CODES + 4 * 2.0**-24)
    assert (np.abs(reference.gaussian.covariance - exact.covariance) <= bound).all()
    np.testing.assert_allclose(reference.gaussian.mean, exact.mean, rtol=2.0**-24)
    assert frechet_distance(reference.gaussian, exact) < 1e-4


def test_a_feature_that_never_varies_is_stored(tmp_path: Path) -> None:
    x = np.float32([[1, 0, 2], [1, 3, 1], [1, 1, 5]])
    statistics = ImageStatistics.of(Features(x, np.ones((3, 1), np.float32)), "test")
    write_files({tmp_path / "reference.npz": reference_writer(statistics, 64)})
    covariance = read_reference(tmp_path / "reference.npz").gaussian.covariance
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-3)


def test_a_statistics_file_is_a_reference(statistics: ImageStatistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    write_files({path: statistics.writer({"image_size": 12})})
    reference = read_reference(path)
    assert (reference.network, reference.image_size, reference.images) == ("test", 12, 500)
    np.testing.assert_array_equal(reference.gaussian.covariance, statistics.gaussian.covariance)


def test_mu_and_sigma_of_other_tools_are_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, mu=np.arange(3.0), sigma=np.eye(3))
    reference = read_reference(path)
    assert (reference.network, reference.image_size, reference.images) == ("", None, None)
    reference.require_comparable("any", 256)
    np.savez(path, mu=np.arange(3.0), sigma=np.eye(2))
    with pytest.raises(NextscaleError, match=r"its covariance is \[2, 2\], but its mean has 3 numbers"):
        read_reference(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(
        NextscaleError, match="no reference statistics: expected correlations, scatter, or mu and sigma"
    ):
        read_reference(tmp_path / "other.npz")
    with pytest.raises(NextscaleError, match="cannot be read: No such file"):
        read_reference(tmp_path / "none.npz")


def test_the_demo_models_reference_is_of_the_feature_network() -> None:
    reference = read_demo_reference()
    reference.require_comparable(FeatureNetwork.name, 64)
    assert reference.images == 7500
    assert reference.gaussian.mean.shape == (1280,)
    assert np.linalg.eigvalsh(reference.gaussian.covariance)[0] > -1e-6


def test_what_the_demo_models_reference_cannot_be_compared_with() -> None:
    reference = read_demo_reference()
    with pytest.raises(NextscaleError, match="the reference is of 64-pixel images, not 256; give --reference FILE"):
        reference.require_comparable(FeatureNetwork.name, 256)
    with pytest.raises(NextscaleError, match=r"the reference is of efficientnet-lite0 .+, these statistics are of x"):
        reference.require_comparable("x", 64)
