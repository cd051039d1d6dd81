"""Pictures to token maps: what the runtime gives, takes and refuses, with a fake encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_bundle import PIXELS, L, V, read_manifest, write_manifest
from onnx import numpy_helper

from nextscale.runtime import Bundle, BundleError, Generator, RequestError
from nextscale.runtime._probe_pictures import probe_pictures
from nextscale.runtime._verify import verify

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, PIXELS, PIXELS, 3)).astype(np.uint8)


def expected(folder: Path, images: np.ndarray) -> np.ndarray:
    """The fake encoder in integers."""
    model = onnx.load(folder / "encoder.onnx")
    weight = next(numpy_helper.to_array(item, str(folder)) for item in model.graph.initializer)
    return images.reshape(len(images), -1).astype(np.int64) @ weight.astype(np.int64) % V


def test_token_maps_are_the_graphs(fake_encoder_bundle: Path) -> None:
    found = Generator(fake_encoder_bundle).encode(IMAGES)
    assert (found.dtype, found.shape) == (np.int64, (3, L))
    np.testing.assert_array_equal(found, expected(fake_encoder_bundle, IMAGES))


def test_any_layout_in_memory_is_taken(fake_encoder_bundle: Path) -> None:
    turned = np.asfortranarray(IMAGES)[:, ::-1]
    found = Generator(fake_encoder_bundle).encode(turned)
    np.testing.assert_array_equal(found, expected(fake_encoder_bundle, turned.copy()))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[0], "images: expected uint8 \\[B, 12, 12, 3\\], found"),
        (IMAGES.astype(np.float32), "images: expected uint8"),
        (IMAGES[:, :-1], "images: expected uint8"),
        (IMAGES[..., :1], "images: expected uint8"),
        (IMAGES[:0], "images is empty: expected at least one picture"),
        ([[1]], "images: expected uint8"),
        (None, "images: expected uint8"),
    ],
)
def test_other_pictures_are_refused(fake_encoder_bundle: Path, images: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Generator(fake_encoder_bundle).encode(images)


def test_a_bundle_without_an_encoder_says_so(fake_bundle: Path) -> None:
    with pytest.raises(BundleError, match="the bundle has no encoder; build it again, without --no-encoder"):
        Generator(fake_bundle).encode(IMAGES)


def test_verify_encodes_the_probe_pictures(fake_encoder_bundle: Path, tmp_path: Path) -> None:
    checks = {check.name: check for check in verify(Bundle.open(fake_encoder_bundle)).checks}
    assert checks["encoder"].passed
    assert "100.0% of the probe pictures' tokens are the stored ones" in checks["encoder"].detail
    other = shutil.copytree(fake_encoder_bundle, tmp_path / "other")
    manifest = read_manifest(other)
    manifest["verify"]["encoded"] = [[(token + 1) % V for token in row] for row in manifest["verify"]["encoded"]]
    write_manifest(other, manifest)
    report = verify(Bundle.open(other))
    assert not report.passed
    assert report.checks[-1].name == "encoder"
    assert "0.0% of the probe pictures' tokens" in report.checks[-1].detail


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ([[0] * L], "verify.encoded"),
        ([[0] * (L - 1)] * 2, "verify.encoded"),
        ([[V] * L] * 2, "verify.encoded"),
        ("", "verify.encoded"),
    ],
)
def test_stored_maps_of_another_form_are_refused(
    fake_encoder_bundle: Path, tmp_path: Path, encoded: Any, message: str
) -> None:
    other = shutil.copytree(fake_encoder_bundle, tmp_path / "other")
    manifest = read_manifest(other)
    manifest["verify"]["encoded"] = encoded
    write_manifest(other, manifest)
    with pytest.raises(BundleError, match=message):
        Bundle.open(other)


def test_an_encoder_of_another_contract_is_refused(fake_encoder_bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(fake_encoder_bundle, tmp_path / "other")
    manifest = read_manifest(other)
    manifest["graphs"]["encoder"]["outputs"][0]["name"] = "tokens"
    write_manifest(other, manifest)
    with pytest.raises(BundleError, match=r"encoder.*token_maps \(int64\)"):
        Bundle.open(other)


def test_probe_pictures_have_something_of_every_size() -> None:
    pictures = probe_pictures((64, 48), 3)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (3, 64, 48, 3))
    assert 20 < pictures.std() < 90
    assert not np.array_equal(pictures[0], pictures[1])
    # Equal within the finest squares, different between them; a picture does not depend on how many there are.
    np.testing.assert_array_equal(pictures[:, ::4, ::3], pictures[:, 3::4, 2::3])
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) == 256
    np.testing.assert_array_equal(probe_pictures((64, 48), 1), pictures[:1])
