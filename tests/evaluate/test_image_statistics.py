from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from pixel_network import PixelNetwork

from nextscale.evaluate.image_statistics import (
    SPLITS,
    Features,
    ImageStatistics,
    extended,
    image_statistics,
    pack_symmetric,
    read_statistics,
    unpack_symmetric,
)
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import read_npz
from nextscale.runtime.image_io import write_files


def random_features(count: int, seed: int = 0, offset: float = 0.0) -> Features:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 1, (5, 5))
    odds = np.exp(rng.normal(0, 2, (count, 7)))
    return Features(
        (rng.normal(0, 1, (count, 5)) @ mixing + offset).astype(np.float32),
        (odds / odds.sum(1, keepdims=True)).astype(np.float32),
    )


def in_batches(features: Features, sizes: list[int]) -> ImageStatistics:
    first, statistics = 0, None
    for size in sizes:
        part = Features(features.pooled[first : first + size], features.probabilities[first : first + size])
        batch = ImageStatistics.of(part, "test", first)
        statistics = statistics.merge(batch) if statistics else batch
        first += size
    assert statistics is not None
    assert first == len(features.pooled)
    return statistics


def assert_same(first: ImageStatistics, second: ImageStatistics, rtol: float) -> None:
    for field in fields(ImageStatistics):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=field.name)
        else:
            assert a == b, field.name


def test_moments_are_those_of_numpy() -> None:
    features = random_features(50)
    gaussian = ImageStatistics.of(features, "test").gaussian
    np.testing.assert_allclose(gaussian.mean, features.pooled.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(features.pooled.astype(np.float64).T), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [8] * 6 + [2], [1, 48, 1]], ids=str)
def test_any_batches_give_the_statistics_of_all_at_once(sizes: list[int]) -> None:
    features = random_features(50)
    assert_same(in_batches(features, sizes), ImageStatistics.of(features, "test"), 1e-13)


def test_a_large_offset_does_not_drown_the_covariance() -> None:
    """A running sum of x x^T would keep some 4 digits here; the float32 features themselves are exact integers."""
    rng = np.random.default_rng(3)
    x = (rng.integers(-8, 9, (4000, 5)) + 2.0**22).astype(np.float32)
    found = in_batches(Features(x, np.full((4000, 2), 0.5, np.float32)), [8] * 500).gaussian
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64).T - 2.0**22), rtol=1e-9, atol=1e-9)


def test_merge_of_separate_streams() -> None:
    first, second = random_features(30), random_features(20, seed=1, offset=4)
    merged = ImageStatistics.of(first, "test").merge(ImageStatistics.of(second, "test"))
    x = np.concatenate([first.pooled, second.pooled]).astype(np.float64)
    assert merged.count == 50
    np.testing.assert_allclose(merged.gaussian.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.gaussian.covariance, np.cov(x.T), rtol=1e-12)


def test_statistics_of_different_networks_do_not_merge() -> None:
    features = random_features(3)
    with pytest.raises(NextscaleError, match="statistics of a and of b cannot be merged"):
        ImageStatistics.of(features, "a").merge(ImageStatistics.of(features, "b"))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(NextscaleError, match="one image has no covariance"):
        _ = ImageStatistics.of(random_features(1), "test").gaussian


@pytest.mark.parametrize("what", ["pooled", "probabilities"])
def test_features_that_are_not_finite_are_refused(what: str) -> None:
    features = random_features(4)
    getattr(features, what)[2, 1] = np.nan
    with pytest.raises(NextscaleError, match="test: features of images 8 to 11 are not finite"):
        ImageStatistics.of(features, "test", first_image=8)


@pytest.mark.parametrize("period", [1, 5, 10, 150])
def test_splits_are_even_among_images_of_each_class(period: int) -> None:
    """Labels come in one order again and again; a class must not land in a few splits."""
    count = 40 * period
    statistics = ImageStatistics.of(
        Features(np.zeros((count, 1), np.float32), np.eye(period, dtype=np.float32)[np.arange(count) % period]), "test"
    )
    assert statistics.split_counts.sum() == count
    np.testing.assert_allclose(statistics.split_probabilities, 40 / SPLITS, atol=2.5)  # images of a class in a split


def test_negentropy_of_certain_probabilities_is_0() -> None:
    features = Features(np.zeros((3, 1), np.float32), np.eye(3, dtype=np.float32))
    assert (ImageStatistics.of(features, "test").split_negentropies == 0).all()


# Images


def test_images_are_streamed_through_the_network() -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    seen: list[int] = []
    network = PixelNetwork()
    found = image_statistics([images[:8], images[8:]], network, seen.append)
    assert seen == [8, 11]
    assert network.seen == 11
    assert_same(found, ImageStatistics.of(network(images), "pixels"), 1e-6)  # float32 features


def test_no_images_are_refused() -> None:
    with pytest.raises(NextscaleError, match="no images"):
        image_statistics([], PixelNetwork())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
    ids=["channels first", "float", "one image", "none"],
)
def test_images_of_another_form_are_refused(images: np.ndarray) -> None:
    with pytest.raises(NextscaleError, match=r"images: expected uint8 \[B, H, W, 3\], found "):
        extended(None, images, PixelNetwork())


# Files


def test_a_file_continues_where_the_stream_stopped(tmp_path: Path) -> None:
    features, path = random_features(50), tmp_path / "half.npz"
    half = ImageStatistics.of(Features(features.pooled[:21], features.probabilities[:21]), "test")
    write_files({path: half.writer({"seed": 3})})
    read, settings = read_statistics(path)
    assert settings == {"seed": 3}
    assert_same(read, half, 0)
    rest = ImageStatistics.of(Features(features.pooled[21:], features.probabilities[21:]), "test", 21)
    assert_same(read.merge(rest), ImageStatistics.of(features, "test"), 1e-13)


def test_symmetric_matrices_survive_packing() -> None:
    x = np.random.default_rng(0).normal(0, 1, (9, 9))
    np.testing.assert_array_equal(unpack_symmetric(pack_symmetric(x + x.T)), x + x.T)


def test_files_that_are_no_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    with pytest.raises(NextscaleError, match=r"file\.npz: cannot be read: No such file"):
        read_statistics(path)
    path.write_bytes(b"no zip")
    with pytest.raises(NextscaleError, match=r"file\.npz: damaged, or no \.npz"):
        read_statistics(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(NextscaleError, match=r"file\.npz: no image statistics \(no array scatter\)"):
        read_statistics(path)
    write_files({path: ImageStatistics.of(random_features(9), "test").writer({})})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(NextscaleError, match=r"file\.npz: damaged"):
        read_statistics(path)


def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        read_npz(make_fifo(tmp_path / "statistics.npz"))
