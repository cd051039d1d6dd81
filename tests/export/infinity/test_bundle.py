"""Infinity's float32 graphs as a bundle: prompts in, pictures of several sizes out, the same in both forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infinity_bundle import PROMPTS, SIZES, TEXT, tiny_vae, write_infinity_bundle
from tiny_model import ONE_THREAD

from nextscale.models.infinity.reference import generate
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime import Bundle, Generator, NextscaleError
from nextscale.runtime._uniforms import uniforms
from nextscale.runtime._verify import verify
from tests.goldens.infinity_parity import padded
from tests.tiny_infinity import CONFIG, tiny_infinity


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_infinity_bundle(tmp_path_factory.mktemp("infinity") / "tiny")


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Generator:
    return Generator(bundle, ONE_THREAD)


def settings_of(index: int) -> dict[str, Any]:
    height, width = SIZES[index].ratio
    return {"area": SIZES[index].area, "ratio": f"{width}:{height}"}


def features_of(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """ByT5's features and mask of texts, by hand: bytes plus 3, and the end."""
    encoder = random_t5(TEXT)
    ids = [torch.tensor([[*(byte + 3 for byte in text.encode()), 1]]) for text in prompts]
    return padded([encoder(tokens)[0] for tokens in ids])


@pytest.mark.parametrize("index", range(len(SIZES)))
@pytest.mark.parametrize("negative", [None, "cat"])
def test_prompts_become_the_references_pictures(generator: Generator, index: int, negative: str | None) -> None:
    """Bits as in `test_stage_graph`, pictures to their rounding; guidance is a list, one for each stage."""
    size = SIZES[index]
    guidance = {"cfg_scale": np.linspace(1, 4, size.num_stages).tolist(), "tau": 0.8, "top_p": 0.9}
    found = generator.generate(prompts=PROMPTS, negative=negative, seed=4, **settings_of(index), **guidance)
    features, mask = features_of(PROMPTS)
    against = None if negative is None else features_of([negative] * 2)
    shape = (len(PROMPTS), size.num_tokens, CONFIG.token_bits)
    expected = generate(
        tiny_infinity(),
        size,
        features,
        torch.from_numpy(uniforms(4, range(2), math.prod(shape[1:])).reshape(shape)),
        text_mask=mask,
        negative_features=None if against is None else against[0],
        negative_mask=None if against is None else against[1],
        **guidance,
    )
    np.testing.assert_array_equal(found.token_maps, expected.bits.numpy())
    pictures = tiny_vae().decoder(expected.f_hat).clamp(-1, 1).add(1).mul(127.5).permute(0, 2, 3, 1)
    assert found.images.shape == (2, *size.image_size, 3)
    assert np.abs(found.images - pictures.numpy()).max() <= 0.51
    streamed = generator.generate(
        prompts=PROMPTS, negative=negative, seed=4, on_stage=lambda stage: None, **settings_of(index), **guidance
    )
    np.testing.assert_array_equal(streamed.token_maps, found.token_maps)
    np.testing.assert_array_equal(streamed.images, found.images)


def test_the_bundle_passes_verify(bundle: Path) -> None:
    report = verify(Bundle.open(bundle, verify_hashes=True))
    assert report.passed, report


def test_a_text_that_is_too_long_is_refused(generator: Generator) -> None:
    with pytest.raises(NextscaleError, match="at most 6"):
        generator.generate(prompts=["a bear"])


def test_an_image_is_the_same_beside_a_longer_text(generator: Generator) -> None:
    """But for rounding, which here moves no bit."""
    alone, together = (generator.generate(prompts=prompts, seed=1) for prompts in (["a"], ["a", "bear"]))
    np.testing.assert_array_equal(alone.token_maps[0], together.token_maps[0])
