"""What images of bundles of text are of: prompts in turn with the text encoder's features, or features made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_bundle import read_manifest, write_manifest
from fake_sizes_bundle import write_fake_sizes_bundle

from nextscale.calib_data.text_subjects import takes_text, text_subjects
from nextscale.runtime import Generator, RequestError
from nextscale.runtime._bundle import Bundle

PROMPTS = ("a fox", "two", "three cats")


@pytest.fixture
def without_encoder(tmp_path: Path) -> Path:
    return write_fake_sizes_bundle(tmp_path / "features", text_encoder=False)


def test_each_prompt_is_drawn_as_often_as_any_other(fake_sizes_bundle: Path) -> None:
    generator = Generator(fake_sizes_bundle)
    subjects, prompts = text_subjects(generator, PROMPTS, 7, seed=3, size=2)
    assert prompts is not None
    assert subjects.sizes.tolist() == [2] * 7
    assert sorted(prompts[:3]) == sorted(PROMPTS)
    assert prompts[3:6] == prompts[:3]
    assert len({text_subjects(generator, PROMPTS, 3, seed)[1] for seed in range(9)}) > 1
    # Drawing from the features is drawing from the prompts.
    found = generator.generate(**subjects.settings(generator.bundle.manifest))
    expected = generator.generate(prompts=prompts, inputs={"size": 2})
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)


def test_made_up_features_are_of_texts_that_the_model_takes(without_encoder: Path) -> None:
    manifest = read_manifest(without_encoder)
    manifest["request"][0]["max_tokens"] = 9
    write_manifest(without_encoder, manifest)
    generator = Generator(without_encoder)
    subjects, prompts = text_subjects(generator, None, 70, seed=0)
    assert prompts is None
    lengths = [len(text) for text in subjects.texts or ()]
    assert (len(lengths), min(lengths), max(lengths)) == (70, 4, 9)
    assert lengths[64:] == lengths[:6]
    generator.generate(**subjects[:3].settings(generator.bundle.manifest))


def test_prompts_without_a_text_encoder_are_refused(without_encoder: Path) -> None:
    with pytest.raises(RequestError, match=r"features has no text encoder to read them; leave them out$"):
        text_subjects(Generator(without_encoder), PROMPTS, 3, seed=0)


def test_bundles_of_classes_take_no_text(fake_bundle: Path, fake_sizes_bundle: Path) -> None:
    assert [takes_text(Bundle.open(path).manifest) for path in (fake_bundle, fake_sizes_bundle)] == [False, True]
