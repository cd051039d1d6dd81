"""Requests to bundles whose inputs are not VAR's six: text, bits, oblong stages, values for each stage."""

import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import L, V, read_manifest, write_manifest
from fake_text_bundle import MASKS, TEXTS, D
from fake_text_bundle import L as TEXT_L

from nextscale.runtime import Bundle, Generator, RequestError, RequestSettings
from nextscale.runtime._request import Request
from nextscale.runtime._uniforms import uniforms

TEXT = {"text_features": np.array(TEXTS, np.float32), "text_mask": np.array(MASKS)}


@pytest.fixture(scope="module")
def text(fake_text_bundle: Path) -> Generator:
    return Generator(fake_text_bundle)


def test_the_batch_is_that_of_the_tensors(text: Generator) -> None:
    made = text.generate(inputs=TEXT, seed=2)
    assert (made.images.shape, made.images.dtype) == ((2, 8, 12, 3), np.uint8)
    assert (made.token_maps.shape, made.token_maps.dtype) == ((2, TEXT_L, D), np.int64)
    assert made.class_labels.tolist() == []
    assert set(np.unique(made.token_maps)) == {0, 1}


def test_an_image_is_the_same_in_any_batch(text: Generator) -> None:
    whole = text.generate(inputs=TEXT, seed=2)
    parts = text.generate(inputs=TEXT, seed=2, batch_size=1)
    alone = text.generate(inputs={name: array[1:] for name, array in TEXT.items()}, seed=2, first_image=1)
    for found, expected in ((parts, whole.token_maps), (alone, whole.token_maps[1:])):
        assert np.array_equal(found.token_maps, expected)


def test_stages_come_in_their_shapes(text: Generator) -> None:
    stages = list(text.stream(inputs=TEXT, outputs=["logits"]))
    assert [stage.tokens.shape for stage in stages] == [(2, n, D) for n in (1, 2, 6)]
    assert all(stage.preview().shape == (2, 8, 12, 3) for stage in stages)


def test_uniforms_of_a_seed_fill_any_shape(fake_text_bundle: Path) -> None:
    request = Request.create(Bundle.open(fake_text_bundle), inputs=TEXT, seed=9, first_image=4)
    found = request.arrays["uniforms"]
    assert np.array_equal(found, uniforms(9, [4, 5], TEXT_L * D).reshape(2, TEXT_L, D))


def test_without_a_mask_all_is_text(text: Generator) -> None:
    alone = text.generate(inputs={"text_features": TEXTS}, seed=2)
    ones = text.generate(inputs={"text_features": TEXTS, "text_mask": np.ones((2, 3), int)}, seed=2)
    assert np.array_equal(alone.token_maps, ones.token_maps)


def test_texts_of_different_lengths_are_padded(text: Generator) -> None:
    texts = [TEXT["text_features"][i, :length] for i, length in enumerate((2, 3))]
    ragged = text.generate(inputs={"text_features": texts}, seed=2)
    assert np.array_equal(ragged.token_maps, text.generate(inputs=TEXT, seed=2).token_maps)


def test_lists_are_taken_as_the_inputs_type(text: Generator) -> None:
    lists = text.generate(inputs={"text_features": TEXTS, "text_mask": MASKS}, seed=2)
    assert np.array_equal(lists.token_maps, text.generate(inputs=TEXT, seed=2).token_maps)


def test_bits_are_forced_one_by_one(text: Generator) -> None:
    forced = np.full((2, TEXT_L, D), -1)
    forced[:, :, 0] = 1
    assert (text.generate(inputs=TEXT, forced_tokens=forced).token_maps[:, :, 0] == 1).all()


@pytest.mark.parametrize(
    ("value", "expected"), [(None, [1, 2, 3]), (2, [2, 2, 2]), ([2], [2, 2, 2]), ([0, 5, 1.5], [0, 5, 1.5])], ids=str
)
def test_a_value_for_all_stages_or_one_for_each(fake_text_bundle: Path, value: Any, expected: list[float]) -> None:
    bundle = Bundle.open(fake_text_bundle)
    for settings in ({"cfg_scale": value, "inputs": TEXT}, {"inputs": {**TEXT, "cfg_scale": value}}):
        found = Request.create(bundle, **settings).arrays["cfg_scale"]
        assert found.dtype == np.float32
        assert found.tolist() == expected


def test_each_stages_value_matters(text: Generator) -> None:
    def logits(cfg_scale: Any) -> list[np.ndarray]:
        stages = text.stream(
            inputs=TEXT, cfg_scale=cfg_scale, forced_tokens=np.ones((2, TEXT_L, D), int), outputs=["logits"]
        )
        return [stage.outputs["logits"] for stage in stages]

    same = [np.array_equal(a, b) for a, b in zip(logits([1, 2, 3]), logits([1, 7, 3]), strict=True)]
    assert same == [True, False, True]


def test_a_scalar_without_a_setting_goes_by_name(fake_text_bundle: Path) -> None:
    request = Request.create(Bundle.open(fake_text_bundle), inputs={**TEXT, "tau": [1, 2, 3]})
    assert request.arrays["tau"].tolist() == [1, 2, 3]


def test_any_input_may_go_by_name(generator: Generator) -> None:
    tokens = np.full((2, L), 3)
    inputs = {"class_labels": [1, "goldfish"], "forced_tokens": tokens, "top_k": 1}
    assert np.array_equal(generator.generate(inputs=inputs).token_maps, tokens)


def test_what_is_left_out_is_the_manifests_default(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["request"][3]["default"], manifest["request"][4]["default"] = 1.25, 2
    write_manifest(damaged, manifest)
    arrays = Request.create(Bundle.open(damaged), [0], top_k=None).arrays
    assert (arrays["cfg_scale"], arrays["top_k"], arrays["top_p"]) == (1.25, 2, np.float32(0.96))


def test_every_setting_is_explained() -> None:
    lines = (RequestSettings.__doc__ or "").splitlines()
    explained = [line.strip().split(":")[0] for line in lines if line.startswith(" " * 8) and line[8] != " "]
    assert explained == list(typing.get_type_hints(RequestSettings))


WIDE = np.zeros((2, 3, 9), np.float32)
LONG_MASK = np.ones((2, 4), np.int64)
BAD = {
    "missing": ({}, "text_features is missing: expected float32 [1, Lt, 8]; give it in inputs"),
    "a mask alone": (
        {"inputs": {"text_mask": MASKS}},
        "text_mask is given without text_features",
    ),
    "a prompt": ({"prompts": ["a"]}, "prompts: this bundle has no text encoder; give text_features in inputs"),
    "a negative prompt": (
        {"negative": "a", "inputs": TEXT},
        "negative: this bundle has no such input; it takes text_f",
    ),
    "an area": ({"area": "1M", "inputs": TEXT}, "area: this bundle has one size, 8 x 12; leave it out"),
    "a ratio": ({"ratio": "1:1", "inputs": TEXT}, "ratio: this bundle has one size, 8 x 12; leave it out"),
    "another width": (
        {"inputs": {**TEXT, "text_features": WIDE}},
        "text_features: expected float32 [2, Lt, 8], found float32 [2, 3, 9]",
    ),
    "another rank": ({"inputs": {**TEXT, "text_mask": np.ones(2, int)}}, "text_mask: expected int64 [2, 3], found int"),
    "another length": (
        {"inputs": {**TEXT, "text_mask": LONG_MASK}},
        "text_mask: expected int64 [2, 3], found int64 [2, 4]",
    ),
    "no text": (
        {"inputs": {"text_features": np.zeros((1, 0, 8), np.float32), "text_mask": np.zeros((1, 0), np.int64)}},
        "text_features: expected float32 [1, Lt, 8], found float32 [1, 0, 8]",
    ),
    "another type": (
        {"inputs": {**TEXT, "text_features": np.array(TEXTS)}},
        "text_features: expected float32 [2, Lt, 8], found float64 [2, 3, 8]",
    ),
    "fractions as a mask": (
        {"inputs": {**TEXT, "text_mask": [[0.5, 1, 1]] * 2}},
        "text_mask: expected int64 [2, 3], found float64 [2, 3]",
    ),
    "ragged": ({"inputs": {**TEXT, "text_mask": [[1], [1, 1]]}}, "text_mask: expected an array, found rows of differ"),
    "one number": ({"inputs": {**TEXT, "text_features": 3.0}}, "text_features: expected a row for each image, found"),
    "unknown input": ({"inputs": {**TEXT, "x": 1}}, 'inputs: this bundle has no input "x"; it takes text_features, '),
    "labels": ({"class_labels": [1], "inputs": TEXT}, "class_labels: this bundle has no such input; it takes text_f"),
    "top_k": ({"top_k": 4, "inputs": TEXT}, "top_k: this bundle has no such input; it takes text_features, text_mask"),
    "twice": (
        {"cfg_scale": 1, "inputs": {**TEXT, "cfg_scale": 1}},
        "cfg_scale is given twice: by itself and in inputs",
    ),
    "two values": (
        {"cfg_scale": [1, 2], "inputs": TEXT},
        "cfg_scale: expected one value, or 3: one for each stage, found 2",
    ),
    "no values": (
        {"cfg_scale": [], "inputs": TEXT},
        "cfg_scale: expected one value, or 3: one for each stage, found 0",
    ),
    "one value of several": (
        {"inputs": {**TEXT, "tau": [1, 101, 1]}},
        "tau 101 is out of range: expected 0.0001 to 100",
    ),
    "other bits": (
        {"forced_tokens": np.full((2, TEXT_L, D), 2), "inputs": TEXT},
        "forced_tokens: expected -1 (sample) to 1, found 2 to 2",
    ),
    "tokens that are no bits": (
        {"forced_tokens": np.zeros((2, TEXT_L), int), "inputs": TEXT},
        "forced_tokens: expected integers [2, 9, 2], found int64 [2, 9]",
    ),
}


@pytest.mark.parametrize(("settings", "message"), BAD.values(), ids=BAD.keys())
def test_bad_requests_are_refused(text: Generator, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        text.generate(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "class_labels is missing: expected a class for each image"),
        ({"class_labels": [0], "cfg_scale": [1, 2, 3]}, "cfg_scale: expected one value, found 3"),
        ({"class_labels": [0], "top_k": [1, 2, V]}, "top_k: expected one value, found 3"),
        ({"class_labels": [0], "inputs": {"class_labels": [0]}}, "class_labels is given twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requests_of_another_bundle_are_refused(generator: Generator, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        generator.generate(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["cfg", "topk", "labels"])
def test_a_setting_that_does_not_exist_is_refused(fake_bundle: Path, name: str) -> None:
    """A typo must not mean the default."""
    with pytest.raises(RequestError, match=f'a request has no setting "{name}"; expected .*cfg_scale'):
        Request.create(Bundle.open(fake_bundle), [1], **{name: 3})


def test_an_unknown_input_is_refused_whatever_its_value(fake_bundle: Path) -> None:
    with pytest.raises(RequestError, match='inputs: this bundle has no input "nope"'):
        Request.create(Bundle.open(fake_bundle), [1], inputs={"nope": None})


def test_a_stream_keeps_the_tensors_it_was_given(text: Generator) -> None:
    given = {name: array.copy() for name, array in TEXT.items()}
    stages = text.stream(inputs=given, seed=2)
    given["text_features"][:] = 0
    found = np.concatenate([stage.tokens for stage in stages], axis=1)
    assert np.array_equal(found, text.generate(inputs=TEXT, seed=2).token_maps)


def test_truth_values_are_no_numbers(text: Generator) -> None:
    mask = [[bool(value) for value in row] for row in MASKS]
    with pytest.raises(RequestError, match=r"text_mask: expected int64 \[2, \d\], found bool"):
        text.generate(inputs={**TEXT, "text_mask": mask})


def test_an_array_that_cannot_be_made_is_refused(text: Generator) -> None:
    class Foreign:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise RuntimeError("call detach() first")

    with pytest.raises(RequestError, match=r"text_features: expected an array, found Foreign: call detach\(\) first"):
        text.generate(inputs={**TEXT, "text_features": Foreign()})
