"""Prompts through a bundle's text encoder, features by hand, and their masks; what of them is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest
from fake_sizes_bundle import MAX_TOKENS, C, fake_sizes_weights, write_fake_sizes_bundle
from numpy.typing import NDArray

from nextscale.runtime import Bundle, BundleError, Generator, RequestError, SessionOptions
from nextscale.runtime._request import Request
from nextscale.runtime._texts import padded, probe_features
from nextscale.runtime._uniforms import uniforms

PROMPTS = ["a fox", "two", "a fox", "ünë"]
EMBEDDING = fake_sizes_weights(0)["embedding"]


def features_of(prompt: str) -> NDArray[np.float32]:
    """What the fake text encoder gives, in NumPy: float32 [N, C]."""
    embedded = EMBEDDING[[*(byte + 3 for byte in prompt.encode()), 1]]
    return embedded + embedded.mean(axis=0)


@pytest.fixture(scope="module")
def sizes(fake_sizes_bundle: Path) -> Generator:
    return Generator(fake_sizes_bundle)


@pytest.fixture(scope="module")
def without_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_sizes_bundle(tmp_path_factory.mktemp("bundles") / "features", text_encoder=False)


@pytest.fixture
def encoded(sizes: Generator, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The shapes of the token ids that the text encoder is given, as it runs."""
    shapes, run = [], Generator._run

    def watched(self: Generator, graph: str, names: list[str], feeds: Any) -> Any:
        if graph == "text_encoder":
            shapes.append(feeds["token_ids"].shape())
        return run(self, graph, names, feeds)

    monkeypatch.setattr(Generator, "_run", watched)
    return shapes


def test_prompts_become_features_and_masks(sizes: Generator) -> None:
    request = Request.create(sizes.bundle, prompts=PROMPTS, negative="dull").encoded(sizes._encode_text).images(0, 4)
    arrays = request.arrays
    lengths = [6, 4, 6, 6]
    assert arrays["text_mask"].tolist() == [[1] * length + [0] * (6 - length) for length in lengths]
    for row, prompt in enumerate(PROMPTS):
        expected = features_of(prompt)
        np.testing.assert_allclose(arrays["text_features"][row, : len(expected)], expected, rtol=0, atol=1e-6)
        assert not arrays["text_features"][row, len(expected) :].any()
    np.testing.assert_allclose(arrays["negative_features"], [features_of("dull")] * 4, rtol=0, atol=1e-6)
    assert arrays["negative_mask"].tolist() == [[1] * 5] * 4
    assert {array.dtype.name for name, array in arrays.items() if name.endswith("features")} == {"float32"}
    assert {array.dtype.name for name, array in arrays.items() if name.endswith("mask")} == {"int64"}


def test_each_text_is_encoded_once_and_alone(sizes: Generator, encoded: list[list[int]]) -> None:
    """Never padded: padding would cost as much as text."""
    sizes.generate(prompts=PROMPTS * 3, negative=["a", "b"] * 6, batch_size=5)
    assert encoded == [[1, 6], [1, 4], [1, 6], [1, 2], [1, 2]]


@pytest.mark.parametrize("keep", [True, False])
def test_the_text_encoder_is_kept_or_closed_before_the_pictures_are_made(sizes: Generator, keep: bool) -> None:
    generator = Generator(sizes.bundle, SessionOptions(keep_text_encoder=keep))
    loaded: list[bool] = []

    def look(stage: object) -> None:
        loaded.append("text_encoder" in generator._pool._sessions)

    expected = sizes.generate(prompts=PROMPTS, negative="dull")
    for _ in range(2):  # it is loaded again
        found = generator.generate(prompts=PROMPTS, negative="dull", on_stage=look)
        np.testing.assert_array_equal(found.token_maps, expected.token_maps)
    for stage in generator.stream(prompts=PROMPTS):
        look(stage)
    assert len(loaded) > 4
    assert set(loaded) == {keep}


def test_threads_may_close_the_text_encoder_that_others_run(sizes: Generator) -> None:
    generator = Generator(sizes.bundle, SessionOptions(threads=1, keep_text_encoder=False))
    expected = sizes.generate(prompts=PROMPTS, seed=5).token_maps
    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(generator.generate, prompts=PROMPTS, seed=5) for _ in range(16)]
        for one in made:
            np.testing.assert_array_equal(one.result().token_maps, expected)


def test_a_text_encoder_that_fails_is_closed_too(sizes: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(sizes.bundle, SessionOptions(keep_text_encoder=False))
    monkeypatch.setattr("nextscale.runtime._next_scale_loop.run_session", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.generate(prompts=PROMPTS)
    assert generator._pool._sessions == {}


def test_prompts_draw_what_their_features_draw(sizes: Generator) -> None:
    features = [sizes._encode_text(sizes.bundle.tokenizer.encode(prompt)) for prompt in PROMPTS]
    text, mask = padded(features)
    expected = sizes.generate(prompts=PROMPTS, seed=3)
    for inputs in ({"text_features": features}, {"text_features": text, "text_mask": mask}):
        found = sizes.generate(inputs=inputs, seed=3)
        np.testing.assert_array_equal(found.token_maps, expected.token_maps)
        np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
def test_an_image_is_the_same_in_any_batch(sizes: Generator, streaming: bool) -> None:
    """Its text is padded to the longest of its batch, and what is behind the mask does not matter."""
    settings: dict[str, Any] = {"negative": ["x", "dull and grey", "x", "y"], "area": "0.02M", "seed": 9}
    on_stage = (lambda stage: None) if streaming else None
    whole = sizes.generate(prompts=PROMPTS, on_stage=on_stage, **settings)
    parts = sizes.generate(prompts=PROMPTS, on_stage=on_stage, batch_size=1, **settings)
    np.testing.assert_array_equal(parts.token_maps, whole.token_maps)
    alone = sizes.generate(prompts=PROMPTS[1:2], **{**settings, "negative": "dull and grey"}, first_image=1)
    np.testing.assert_array_equal(alone.token_maps, whole.token_maps[1:2])
    assert not np.array_equal(whole.token_maps[0], whole.token_maps[2])  # of one prompt, but other uniforms


def test_what_is_behind_the_mask_does_not_matter(sizes: Generator) -> None:
    text, mask = padded([features_of(prompt) for prompt in PROMPTS])
    changed = np.where(mask[..., None] == 1, text, np.float32(7))
    found = sizes.generate(inputs={"text_features": changed, "text_mask": mask})
    expected = sizes.generate(inputs={"text_features": text, "text_mask": mask})
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)


def logits(sizes: Generator, **settings: Any) -> NDArray[np.float32]:
    forced = np.ones((1, 5, 2), int)
    stages = sizes.stream(prompts=["a"], forced_tokens=forced, outputs=["logits"], **settings)
    return np.concatenate([stage.outputs["logits"] for stage in stages], axis=1)


def test_without_a_negative_text_it_is_what_the_model_learned(sizes: Generator) -> None:
    request = Request.create(sizes.bundle, prompts=PROMPTS)
    assert request.arrays["negative_features"].shape == (4, 0, C)
    assert request.arrays["negative_mask"].shape == (4, 0)
    without, empty, dull = (logits(sizes, **settings) for settings in ({}, {"negative": ""}, {"negative": "dull"}))
    np.testing.assert_array_equal(without, empty)
    assert np.abs(without - dull).max() > 1e-3


def test_guidance_away_from_a_text_is_nothing_at_scale_1(sizes: Generator) -> None:
    """logits = cfg conditional + (1 - cfg) unconditional, over tau."""
    at_1, at_0, at_3 = (logits(sizes, cfg_scale=scale, negative="dull", tau=1) for scale in (1, 0, 3))
    np.testing.assert_allclose(at_3, 3 * at_1 - 2 * at_0, rtol=0, atol=1e-4)
    np.testing.assert_allclose(at_1, logits(sizes, cfg_scale=1, tau=1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits(sizes, cfg_scale=1, tau=0.5), 2 * at_1, rtol=0, atol=1e-4)


def test_features_need_no_text_encoder(without_encoder: Path, sizes: Generator) -> None:
    inputs = {
        "text_features": [features_of(prompt) for prompt in PROMPTS],
        "negative_features": [features_of("no")] * 4,
    }
    alone = Generator(without_encoder)
    assert "text_encoder" not in alone.bundle.manifest.graphs
    np.testing.assert_array_equal(alone.generate(inputs=inputs).token_maps, sizes.generate(inputs=inputs).token_maps)


def test_a_stream_keeps_what_it_was_given(sizes: Generator) -> None:
    prompts, features = ["a", "b"], [np.array(features_of(prompt)) for prompt in ("a", "bb")]
    streams = [sizes.stream(prompts=prompts), sizes.stream(inputs={"text_features": features})]
    expected = [sizes.stream(prompts=["a", "b"]), sizes.stream(inputs={"text_features": [*map(np.copy, features)]})]
    prompts[:] = ["c", "d"]
    features[0][:] = features[1][:] = 0
    for stream, other in zip(streams, expected, strict=True):
        np.testing.assert_array_equal(
            next(stream).outputs or next(stream).tokens, next(other).outputs or next(other).tokens
        )


def test_probe_features_are_the_formula() -> None:
    first, second = probe_features([3, 1], 4)
    np.testing.assert_array_equal(first, (2 * uniforms(0, [0], 12) - 1).reshape(3, 4))
    np.testing.assert_array_equal(second, (2 * uniforms(0, [1], 4) - 1).reshape(1, 4))
    assert first.dtype == np.float32


FEATURES = np.zeros((2, 3, C), np.float32)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({}, "prompts are missing: expected a text for each image"),
    "one text": ({"prompts": "a fox"}, "prompts 'a fox': expected a list of texts, one for each image"),
    "bytes": ({"prompts": b"a fox"}, "prompts b'a fox': expected a list of texts"),
    "a number": ({"prompts": 3}, "prompts 3: expected a list of texts"),
    "a set": ({"prompts": {"a"}}, "prompts {'a'}: expected a list of texts"),
    "no texts": ({"prompts": []}, "prompts: expected at least one text, found 0"),
    "a number among texts": ({"prompts": ["a", 3]}, "prompts[1] 3: expected a text"),
    "an empty one": ({"prompts": ["a", ""]}, 'prompts[1]: prompt "" is empty: expected a description in words'),
    "half a pair": ({"prompts": ["a\ud800\n"]}, r'prompts[0]: prompt "a\ud800\n": character 1 is half of one'),
    "too long": (
        {"prompts": ["a", "x" * MAX_TOKENS]},
        f'xxx" has {MAX_TOKENS + 1} tokens, its end among them; expected at most {MAX_TOKENS}',
    ),
    "both": (
        {"prompts": ["a", "b"], "inputs": {"text_features": FEATURES}},
        "prompts and text_features are both given: leave one out",
    ),
    "a mask of prompts": (
        {"prompts": ["a"], "inputs": {"text_mask": [[1]]}},
        "text_mask is given without text_features",
    ),
    "negative twice": (
        {"prompts": ["a"] * 2, "negative": "b", "inputs": {"negative_features": FEATURES}},
        "negative and negative_features are both given: leave one out",
    ),
    "few negative ones": (
        {"prompts": ["a", "b"], "negative": ["a"]},
        "negative: expected a text for each of 2 images, found 1",
    ),
    "an empty negative one": ({"prompts": ["a", "b"], "negative": ["a", ""]}, 'negative[1]: prompt "" is empty'),
    "a negative number": ({"prompts": ["a"], "negative": 3}, "negative 3: expected a list of texts"),
    "a negative mask alone": (
        {"prompts": ["a"], "inputs": {"negative_mask": [[1]]}},
        "negative_mask is given without negative_features",
    ),
    "features of another width": (
        {"inputs": {"text_features": FEATURES[..., :5]}},
        "text_features: expected float32 [2, Lt, 8], found float32 [2, 3, 5]",
    ),
    "one of another width": (
        {"inputs": {"text_features": [FEATURES[0], FEATURES[1, :2, :5]]}},
        "text_features[1]: expected float32 [N, 8], found float32 [2, 5]",
    ),
    "one of another type": (
        {"inputs": {"text_features": [FEATURES[0], np.zeros((2, C))]}},
        "text_features[1]: expected float32 [N, 8], found float64 [2, 8]",
    ),
    "one without tokens": (
        {"inputs": {"text_features": [FEATURES[0], FEATURES[1, :0]]}},
        "text_features[1]: expected float32 [N, 8], found float32 [0, 8]",
    ),
    "a mask of other numbers": (
        {"inputs": {"text_features": FEATURES, "text_mask": [[1, 1, 0], [1, 2, -3]]}},
        "text_mask: expected 1 (text) or 0 (behind its end), found 2",
    ),
    "several lengths and a mask": (
        {"inputs": {"text_features": [FEATURES[0], FEATURES[1, :2]], "text_mask": np.ones((2, 3), int)}},
        "text_mask: texts of different lengths get a mask of their own; leave it out",
    ),
    "negative features of more images": (
        {"prompts": ["a"], "inputs": {"negative_features": FEATURES}},
        "negative_features: expected float32 [1, Ln, 8], found float32 [2, 3, 8]",
    ),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD.keys())
def test_bad_texts_are_refused_before_anything_runs(
    sizes: Generator, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(Generator, "_run", lambda *_: pytest.fail("ran"))
    for form in (sizes.generate, sizes.stream):
        with pytest.raises(RequestError) as caught:
            form(**settings)
        assert message in str(caught.value)
        assert str(caught.value).isprintable()


def test_prompts_where_there_is_no_text_encoder(without_encoder: Path, fake_bundle: Path) -> None:
    with pytest.raises(RequestError, match="prompts: this bundle has no text encoder; give text_features in inputs"):
        Generator(without_encoder).generate(prompts=["a"])
    with pytest.raises(RequestError, match="prompts: this bundle has no such input; it takes class_labels, uniforms"):
        Generator(fake_bundle).generate([0], prompts=["a"])
    with pytest.raises(RequestError, match=r"text_features is missing: expected float32 \[1, Lt, 8\]"):
        Generator(without_encoder).generate()


Manifest = dict[str, Any]


@pytest.fixture
def damaged(fake_sizes_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fake_sizes_bundle, tmp_path / "damaged")


def test_a_tokenizer_of_an_unknown_kind(damaged: Path) -> None:
    """Features are taken all the same."""
    manifest = read_manifest(damaged)
    manifest["tokenizer"] = {"kind": "rhymes", "level": 3}
    write_manifest(damaged, manifest)
    generator = Generator(damaged)
    with pytest.raises(
        RequestError, match=r'tokenizer of kind "rhymes", which nextscale .* does not know; give features'
    ):
        generator.generate(prompts=["a"])
    assert len(generator.generate(inputs={"text_features": FEATURES}).images) == 2


def test_no_tokenizer(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    del manifest["tokenizer"]
    write_manifest(damaged, manifest)
    with pytest.raises(RequestError, match="prompts: this bundle has no tokenizer; give text_features in inputs"):
        Generator(damaged).generate(prompts=["a"])


def test_a_tokenizer_with_a_file(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["tokenizer"] = {"kind": "sentencepiece", "file": "card.md", "max_tokens": 9}
    write_manifest(damaged, manifest)
    info = Bundle.open(damaged).manifest.tokenizer
    assert info is not None
    assert (info.kind, info.file, info.max_tokens) == ("sentencepiece", "card.md", 9)


def entry(name: str, kind: str, shape: list[Any], dtype: str = "float32") -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        places = [i for i, item in enumerate(manifest["request"]) if item["name"] == name]
        manifest["request"][places[0]] |= {"kind": kind, "shape": shape, "dtype": dtype}

    return change


def verify(**changes: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        del manifest["verify"]["prompts"]
        manifest["verify"] |= changes

    return change


def tokenizer(**tokenizer: Any) -> Callable[[Manifest], None]:
    return lambda manifest: manifest.update(tokenizer=tokenizer)


def width_of_the_encoder(manifest: Manifest) -> None:
    manifest["graphs"]["text_encoder"]["outputs"][0]["shape"] = ["B", "N", 9]


def another_input(manifest: Manifest) -> None:
    manifest["graphs"]["text_encoder"]["inputs"][0]["name"] = "ids"


def no_text(manifest: Manifest) -> None:
    """Neither the request nor the stage graph has it."""
    kinds = ("text_features", "text_mask", "negative_features", "negative_mask")
    manifest["request"] = [item for item in manifest["request"] if item["kind"] not in kinds]
    for role in ("generate", "stage"):
        graph = manifest["graphs"][role]
        graph["inputs"] = [item for item in graph["inputs"] if item["name"] not in kinds]


DAMAGED: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "features of one length": (
        entry("text_features", "text_features", ["B", 7, C]),
        'request[0].shape: expected "B", a symbol and a size, found ["B", 7, 8]',
    ),
    "features as long as the size": (
        entry("text_features", "text_features", ["B", "h", C]),
        'request[0].shape: expected "B", a symbol and a size',
    ),
    "features of halves": (
        entry("text_features", "text_features", ["B", "Lt", C], "float16"),
        "request[0].dtype: expected one of float32",
    ),
    "a mask of another length": (
        entry("text_mask", "text_mask", ["B", "Lx"], "int64"),
        "request[1].shape: expected the first two dimensions of text_features",
    ),
    "a mask of one length": (
        entry("negative_mask", "negative_mask", ["B"], "int64"),
        'request[3].shape: expected "B" and a symbol',
    ),
    "negative features as long as the text": (
        lambda manifest: [
            entry("negative_features", "negative_features", ["B", "Lt", C])(manifest),
            entry("negative_mask", "negative_mask", ["B", "Lt"], "int64")(manifest),
        ],  # type: ignore[arg-type, return-value]
        'request[2].shape: expected "B", another symbol than text_features has, and its width',
    ),
    "negative features of another width": (
        entry("negative_features", "negative_features", ["B", "Ln", 9]),
        'request[2].shape: expected "B", another symbol than text_features has, and its width',
    ),
    "a mask without features": (
        entry("text_features", "image", ["B", 3]),
        "request[1].kind: expected no text_mask without text_features",
    ),
    "only negative ones": (
        lambda manifest: [
            entry("text_features", "image", ["B", 3])(manifest),
            entry("text_mask", "mask", ["B", 3])(manifest),
        ],  # type: ignore[arg-type, return-value]
        "request[2].kind: expected no negative_features without text_features",
    ),
    "features twice": (
        entry("negative_features", "text_features", ["B", "Ln", C]),
        "request[2].kind: expected no second input of its kind",
    ),
    "a tokenizer without a kind": (tokenizer(max_tokens=3), 'key "tokenizer.kind" is missing'),
    "a tokenizer of no tokens": (
        tokenizer(kind="bytes", max_tokens=0),
        "tokenizer.max_tokens: expected an integer from 1",
    ),
    "a tokenizer without its file": (tokenizer(kind="sentencepiece", max_tokens=3), 'key "tokenizer.file" is missing'),
    "a tokenizer elsewhere": (
        tokenizer(kind="sentencepiece", file="../spiece.model", max_tokens=3),
        'tokenizer.file: expected a plain file name that "files" lists, found "../spiece.model"',
    ),
    "a text encoder of another width": (
        width_of_the_encoder,
        "graphs.text_encoder.outputs: expected text_features of width 8, as the request has",
    ),
    "a text encoder of other inputs": (another_input, "graphs.text_encoder.inputs: expected the contract's, token_ids"),
    "a text encoder without texts": (
        no_text,
        "graphs.text_encoder.outputs: expected no text_encoder, since the request",
    ),
    "verify of no text": (verify(), "verify: expected one of inputs.text_features, prompts and text_lengths, found"),
    "verify of two texts": (
        verify(prompts=["a"], text_lengths=[3]),
        "verify: expected one of inputs.text_features, prompts and text_lengths",
    ),
    "verify of no prompts": (verify(prompts=[]), "verify.prompts: expected at least one prompt"),
    "verify of no lengths": (verify(text_lengths=[]), "verify.text_lengths: expected at least one length"),
    "verify of an empty prompt": (verify(prompts=["a", ""]), "verify.prompts[1]: expected 1 to 10000 characters"),
    "verify of a control character": (
        verify(prompts=["a\u001b"]),
        "verify.prompts[0]: expected a line of printable text",
    ),
    "verify of a length of 0": (verify(text_lengths=[0, 1]), "verify.text_lengths[0]: expected an integer from 1 to"),
    "verify of long texts": (
        verify(text_lengths=[2**20] * 40),
        "verify.text_lengths: expected at most 8 dimensions of 268435456 elements in all",
    ),
    "verify of a third prompt": (
        verify(prompts=["a", "b", "c"]),
        "verify.token_maps: expected one row for each of 3 texts, found 2",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_bad_manifests_of_text_are_refused(damaged: Path, damage: Callable[[Manifest], None], message: str) -> None:
    manifest = read_manifest(damaged)
    damage(manifest)
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError) as caught:
        Bundle.open(damaged)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_prompts_of_verify_need_a_text_encoder(without_encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(without_encoder, tmp_path / "damaged")
    manifest = read_manifest(folder)
    del manifest["verify"]["text_lengths"]
    manifest["verify"]["prompts"] = ["a", "b"]
    write_manifest(folder, manifest)
    with pytest.raises(
        BundleError, match=r"verify\.prompts: expected no prompts, since the bundle has no text encoder"
    ):
        Bundle.open(folder)


def test_texts_of_verify_where_there_are_none(fake_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fake_bundle, tmp_path / "damaged")
    manifest = read_manifest(folder)
    manifest["verify"]["text_lengths"] = [3, 3]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"verify\.text_lengths: expected no text, since the request has none"):
        Bundle.open(folder)
