"""Bundles of several sizes: which one a request means, what it decides, and lists of sizes that are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest
from fake_sizes_bundle import LENGTHS, SIZES, D

from nextscale.runtime import Bundle, BundleError, Generator, RequestError, SizeInfo
from nextscale.runtime._edit import kept_tokens, latent_mask
from nextscale.runtime._request import Request
from nextscale.runtime._sizes import choose_size, nearest_ratio
from nextscale.runtime._uniforms import uniforms

BY_SIZE = [(0, {}), (0, {"area": "0.01M", "ratio": "1:1"}), (1, {"ratio": "2:3"}), (1, {"ratio": "512:768"}),
           (2, {"area": "0.02M"}), (2, {"inputs": {"size": 2}}), (2, {"inputs": {"size": np.int64(2)}})]  # fmt: skip
PROMPTS = ["a fox", "two"]


@pytest.fixture(scope="module")
def sizes(fake_sizes_bundle: Path) -> Generator:
    return Generator(fake_sizes_bundle)


def test_the_manifest_lists_them(sizes: Generator) -> None:
    manifest = sizes.bundle.manifest
    assert manifest.sizes[1] == SizeInfo("0.01M", (3, 2), (12, 8), (3, 2), ((1, 1), (2, 1), (3, 2)))
    assert [size.ratio_in_words for size in manifest.sizes] == ["1:1", "2:3", "1:1"]
    assert [model.num_tokens for model in manifest.models] == LENGTHS
    assert manifest.models[0] == manifest.model
    assert manifest.of_size(2).model == manifest.models[2]


def test_a_bundle_of_one_size_is_that_size(fake_bundle: Path) -> None:
    manifest = Bundle.open(fake_bundle).manifest
    assert manifest.sizes == ()
    assert manifest.models == (manifest.model,)
    assert manifest.of_size(0) is manifest


@pytest.mark.parametrize(("index", "settings"), BY_SIZE, ids=str)
def test_a_request_says_its_size(sizes: Generator, index: int, settings: dict[str, Any]) -> None:
    request = Request.create(sizes.bundle, prompts=PROMPTS, **settings)
    assert (request.size, request.arrays["size"].tolist(), request.arrays["size"].dtype) == (index, index, np.int64)
    stages, length = len(SIZES[index]["stage_sizes"]), LENGTHS[index]
    assert request.arrays["forced_tokens"].shape == (2, length, D)
    assert request.arrays["cfg_scale"].tolist() == [3.0] * stages
    expected = uniforms(0, range(2), length * D).reshape(2, length, D)
    np.testing.assert_array_equal(request.arrays["uniforms"], expected)


@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
@pytest.mark.parametrize("index", range(3))
def test_pictures_are_of_the_size(sizes: Generator, index: int, streaming: bool) -> None:
    told: list[tuple[int, ...]] = []
    shapes: list[tuple[int, ...]] = []

    def on_stage(result: Any) -> None:
        told.append((result.stage, result.num_stages, result.tokens.shape[1]))
        shapes.append(result.preview().shape)

    made = sizes.generate(prompts=PROMPTS, inputs={"size": index}, on_stage=on_stage if streaming else None)
    image, stages = (2, *SIZES[index]["image_size"], 3), SIZES[index]["stage_sizes"]
    assert made.images.shape == image
    assert made.token_maps.shape == (2, LENGTHS[index], D)
    if streaming:
        assert told == [(number, len(stages), h * w) for number, (h, w) in enumerate(stages)]
        assert set(shapes) == {image}


@pytest.mark.parametrize("index", range(3))
def test_one_call_makes_the_tokens_of_streaming(sizes: Generator, index: int) -> None:
    settings: dict[str, Any] = {"prompts": PROMPTS, "negative": "dull", "inputs": {"size": index}, "seed": 4}
    single, streamed = sizes.generate(**settings), sizes.generate(**settings, on_stage=lambda stage: None)
    np.testing.assert_array_equal(single.token_maps, streamed.token_maps)
    np.testing.assert_array_equal(single.images, streamed.images)


def test_a_value_for_each_stage_of_the_size(sizes: Generator) -> None:
    request = Request.create(sizes.bundle, prompts=PROMPTS, area="0.02M", tau=[1, 2, 3], cfg_scale=4)
    assert request.arrays["tau"].tolist() == [1, 2, 3]
    assert request.arrays["cfg_scale"].tolist() == [4, 4, 4]
    with pytest.raises(RequestError, match="tau: expected one value, or 2: one for each stage, found 3"):
        sizes.generate(prompts=PROMPTS, tau=[1, 2, 3])


@pytest.mark.parametrize("index", range(3))
def test_latents_of_each_size_are_decoded(sizes: Generator, index: int) -> None:
    h, w = SIZES[index]["latent_size"]
    assert sizes.decode(np.zeros((1, 2, h, w), np.float32)).shape == (1, *SIZES[index]["image_size"], 3)


@pytest.mark.parametrize("index", range(3))
def test_pictures_of_each_size_are_encoded(sizes: Generator, index: int) -> None:
    rng = np.random.default_rng(index)
    images = rng.integers(0, 256, (2, *SIZES[index]["image_size"], 3)).astype(np.uint8)
    sums, places = images.sum(axis=(1, 2, 3), dtype=np.int64), np.arange(LENGTHS[index])
    moved = sums[:, None] * (places + 1) + places
    expected = np.stack([moved // 3 % 2, moved // 5 % 2], axis=-1)
    np.testing.assert_array_equal(sizes.encode(images), expected)


@pytest.mark.parametrize("index", [1, 2])
def test_an_edit_has_the_size_of_its_picture(sizes: Generator, index: int) -> None:
    """A token that is kept is kept with all its bits."""
    height, width = SIZES[index]["image_size"]
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.bool_)
    mask[: height // 2] = True
    made = sizes.edit(image, mask, prompts=PROMPTS, seed=5)
    model = sizes.bundle.manifest.models[index]
    kept, own = kept_tokens(latent_mask(mask, model), model), sizes.encode(image[None])
    forced = np.where(kept[:, None], own, -1).repeat(2, axis=0)
    alone = sizes.generate(prompts=PROMPTS, seed=5, forced_tokens=forced, inputs={"size": index})
    np.testing.assert_array_equal(made.token_maps, alone.token_maps)
    np.testing.assert_array_equal(made.token_maps[:, kept], own[:, kept].repeat(2, axis=0))
    np.testing.assert_array_equal(made.images[:, ~mask], image[~mask][None].repeat(2, axis=0))
    assert 0 < kept[3:].sum() < len(kept) - 3


BUILT = "this bundle has 0.01M 1:1 2:3; 0.02M 1:1"
BAD = {
    "a ratio of another area": ({"area": "0.02M", "ratio": "2:3"}, f"area 0.02M with ratio 2:3 is not built; {BUILT}"),
    "another ratio": ({"ratio": "3:2"}, f"area 0.01M with ratio 3:2 is not built; {BUILT}"),
    "another area": ({"area": "1M"}, f"area 1M with ratio 1:1 is not built; {BUILT}"),
    "a ratio of nothing": ({"ratio": "0:1"}, "ratio '0:1': expected width to height such as \"3:4\""),
    "a ratio of fractions": ({"ratio": "1.5:1"}, "ratio '1.5:1': expected width to height"),
    "a ratio of control characters": ({"ratio": "1:1\n"}, r"ratio '1:1\n': expected width to height"),
    "a number for a ratio": ({"ratio": 1.5}, "ratio 1.5: expected width to height"),
    "an area without a unit": ({"area": "0.02"}, "area '0.02': expected megapixels such as \"0.25M\""),
    "a number for an area": ({"area": 0.02}, "area 0.02: expected megapixels"),
    "an index beyond": ({"inputs": {"size": 3}}, "size 3 is out of range: expected 0 to 2"),
    "an index below": ({"inputs": {"size": -1}}, "size -1 is out of range: expected 0 to 2"),
    "no index": ({"inputs": {"size": 1.0}}, "size 1.0: expected an integer"),
    "twice": ({"area": "0.02M", "inputs": {"size": 2}}, "area: the size is given twice: by area and in inputs"),
    "tokens of another size": (
        {"area": "0.02M", "forced_tokens": np.zeros((2, 5, 2), int)},
        "forced_tokens: expected integers [2, 21, 2], found int64 [2, 5, 2]",
    ),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD.keys())
def test_sizes_that_are_not_there_are_refused(
    sizes: Generator, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Generator, "_run", lambda *_: pytest.fail("ran"))
    for form in (sizes.generate, sizes.stream):
        with pytest.raises(RequestError) as caught:
            form(prompts=PROMPTS, **settings)
        assert message in str(caught.value)


def test_arrays_of_other_sizes_are_refused(sizes: Generator) -> None:
    shapes = r"\[B, 8, 8, 3\] or \[B, 12, 8, 3\] or \[B, 16, 16, 3\]"
    with pytest.raises(RequestError, match=f"images: expected uint8 {shapes}, found uint8"):
        sizes.encode(np.zeros((1, 8, 12, 3), np.uint8))
    with pytest.raises(
        RequestError, match=r"f_hat: expected float32 \[B, 2, 2, 2\] or .*, found float32 \[1, 2, 2, 3\]"
    ):
        sizes.decode(np.zeros((1, 2, 2, 3), np.float32))
    with pytest.raises(RequestError, match=r"image: expected uint8 \[8, 8, 3\] or .*, found uint8 \[8, 12, 3\]"):
        sizes.edit(np.zeros((8, 12, 3), np.uint8), prompts=PROMPTS)


@pytest.mark.parametrize("settings", [{"area": "0.01M"}, {"ratio": "1:1"}, {"inputs": {"size": 0}}], ids=str)
def test_an_edit_takes_no_other_size(sizes: Generator, settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="an edit has the size of its picture; leave it out"):
        sizes.edit(np.zeros((8, 8, 3), np.uint8), prompts=PROMPTS, **settings)


def test_areas_are_numbers(sizes: Generator) -> None:
    """What is written as 0.60M may be asked for as 0.6M."""
    assert choose_size(sizes.bundle.manifest.sizes, "0.020M", None) == 2


@pytest.mark.parametrize(("size", "ratio"), [((8, 8), "1:1"), ((100, 60), "2:3"), ((60, 100), "1:1"), ((9, 8), "1:1")])
def test_the_nearest_ratio(sizes: Generator, size: tuple[int, int], ratio: str) -> None:
    assert nearest_ratio(sizes.bundle.manifest.sizes, size) == ratio


# Manifests

Manifest = dict[str, Any]


def at(*path: Any, value: Any) -> Callable[[Manifest], None]:
    *parents, last = path

    def change(manifest: Manifest) -> None:
        owner: Any = manifest
        for key in parents:
            owner = owner[key]
        owner[last] = value

    return change


def without(*path: Any) -> Callable[[Manifest], None]:
    *parents, last = path

    def change(manifest: Manifest) -> None:
        owner: Any = manifest
        for key in parents:
            owner = owner[key]
        del owner[last]

    return change


def repeated(manifest: Manifest) -> None:
    manifest["sizes"] = manifest["sizes"] * 400


DAMAGED = {
    "no list": (at("sizes", value={}), "sizes: expected a list, found {}"),
    "no size": (at("sizes", value=[]), "sizes: expected 1 to 1000 sizes, found 0"),
    "too many": (repeated, "sizes: expected 1 to 1000 sizes, found 1200"),
    "an area in words": (
        at("sizes", 1, "area", value="big"),
        'sizes[1].area: expected megapixels such as "0.25M", found',
    ),
    "an area of control characters": (
        at("sizes", 1, "area", value="1M\n"),
        "sizes[1].area: expected a line of printable",
    ),
    "a ratio that can be less": (
        at("sizes", 1, "ratio", value=[6, 4]),
        "sizes[1].ratio: expected [height, width] in low",
    ),
    "a ratio of nothing": (
        at("sizes", 1, "ratio", value=[0, 1]),
        "sizes[1].ratio[0]: expected an integer from 1 to 1000",
    ),
    "one size twice": (
        at("sizes", 2, "area", value="0.010M"),
        "sizes[2].ratio: expected another than those of the sizes",
    ),
    "pictures of one size": (
        at("sizes", 2, "image_size", value=[8, 8]),
        "sizes[2].image_size: expected another than those of the sizes before, found [8, 8]",
    ),
    "latents of one size": (at("sizes", 2, "latent_size", value=[3, 2]), "sizes[2].latent_size: expected another than"),
    "a first size that is not the model's": (
        at("model", "stage_sizes", value=[[1, 1]]),
        "sizes[0].stage_sizes: expected model.stage_sizes, which is the first size's",
    ),
    "no stages": (
        at("sizes", 1, "stage_sizes", value=[]),
        "sizes[1].stage_sizes: expected [height, width] of each stage",
    ),
    "more and more tokens": (
        at("sizes", 1, "stage_sizes", value=[[4096, 4096]] * 20),
        "request[4].shape: expected at most 8 dimensions of 268435456 elements in all",
    ),
    "a latent of many positions": (
        at("sizes", 1, "latent_size", value=[2**20, 2**20]),
        "graphs.stage.state[0].initial_shape: expected at most 8 dimensions of 268435456 elements in all",
    ),
    "no input of the size": (without("request", 8), "request: expected an input of kind size"),
    "a size where there is one": (
        without("sizes"),
        'request[4].shape: expected "B" and sizes',
    ),
    "two inputs of the size": (
        lambda manifest: manifest["request"].append({"name": "x", "kind": "size", "dtype": "int64", "shape": []}),
        "request[9].kind: expected no second input of its kind",
    ),
    "a size for each image": (at("request", 8, "shape", value=["B"]), "request[8].shape: expected [], found"),
    "a size in halves": (at("request", 8, "dtype", value="float32"), "request[8].dtype: expected one of int64"),
    "tokens of a number": (
        at("request", 5, "shape", value=["B", 5, 2]),
        'request[5].shape: expected "B", "L" and further',
    ),
    "a scalar of stages in numbers": (at("request", 6, "shape", value=[3]), 'request[6].shape: expected [] or ["S"]'),
    "a default for each stage": (
        at("request", 6, "default", value=[1, 2, 3]),
        "request[6].default: expected one number, since sizes differ in their stages",
    ),
    "an unknown symbol of a state": (
        at("graphs", "stage", "state", 0, "initial_shape", value=["B", 2, "h", "v"]),
        "graphs.stage.state[0].initial_shape[3]: expected an integer from 0 to 2147483648",
    ),
    "an encoder without the size": (
        without("graphs", "encoder", "inputs", 1),
        "graphs.encoder.inputs: expected the contr",
    ),
    "verify of no size": (
        at("verify", "inputs", "size", value=3),
        "verify.inputs.size: expected an integer from 0 to 2",
    ),
    "verify of another size": (
        at("verify", "inputs", "size", value=2),
        "verify.token_maps[0]: expected a list of 42 tokens",
    ),
}


@pytest.fixture
def damaged_sizes(fake_sizes_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fake_sizes_bundle, tmp_path / "damaged")


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_bad_lists_of_sizes_are_refused(damaged_sizes: Path, damage: Callable[[Manifest], None], message: str) -> None:
    manifest = read_manifest(damaged_sizes)
    damage(manifest)
    write_manifest(damaged_sizes, manifest)
    with pytest.raises(BundleError) as caught:
        Bundle.open(damaged_sizes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_input_of_kind_size_without_sizes(fake_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fake_bundle, tmp_path / "damaged")
    manifest = read_manifest(folder)
    manifest["request"].append({"name": "size", "kind": "size", "dtype": "int64", "shape": []})
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match="request: expected no input of kind size, since there is no list of sizes"):
        Bundle.open(folder)
