"""Infinities to build: sizes by area and ratio, what a bundle says of them, texts of calibration, and each refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from infinity_bundle import SIZES, TEXT, VAE, tiny_infinity_source
from infinity_checkpoints import INFINITY, save_infinity_checkpoints, save_text_encoder

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.prompts import PROMPTS
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.models.infinity.schedules import AREAS, SCALES, make_size
from nextscale.models.infinity.sources import InfinitySource, checkpoint_source, random_source, sizes_of
from nextscale.runtime._errors import NextscaleError
from tests.goldens.infinity_parity import in_chunks, random_state
from tests.tiny_infinity import tiny_infinity

# Sizes


def test_each_area_has_each_ratio_once() -> None:
    found = sizes_of(["0.250M", "0.6M", "0.25M"], ["1:1", "6:8", "3:4"])
    expected = [("0.25M", (1, 1)), ("0.25M", (4, 3)), ("0.60M", (1, 1)), ("0.60M", (4, 3))]
    assert found == tuple(make_size(area, ratio) for area, ratio in expected)


def test_all_sizes_can_be_asked_for() -> None:
    found = sizes_of(list(AREAS), [f"{width}:{height}" for height, width in SCALES])
    assert len(found) == len({size.image_size for size in found}) == len({size.latent_size for size in found}) == 60


@pytest.mark.parametrize(
    ("areas", "ratios", "message"),
    [
        (["0.5M"], ["1:1"], r"--area '0\.5M': expected one of 0\.06M, 0\.25M, 0\.60M, 1M"),
        (["256"], ["1:1"], r"--area '256': expected one of"),
        (["1M"], ["5:7"], r"--ratio '5:7': expected one of 1:1, 4:5, 3:4, .* \(width to height\)"),
        (["1M"], ["0:1"], r"--ratio '0:1': expected"),
        (["1M"], [""], r"--ratio '': expected"),
    ],
)
def test_other_sizes_are_refused(areas: list[str], ratios: list[str], message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        sizes_of(areas, ratios)


def test_more_stages_than_the_model_has_are_refused() -> None:
    model = tiny_infinity(INFINITY)
    assert sizes_of(["0.06M"], ["1:1"], model)[0].num_stages == 7
    with pytest.raises(NextscaleError, match=r"--area 0\.25M: has 10 stages, the model makes at most 8; choose a sm"):
        sizes_of(["0.06M", "0.25M"], ["1:1"], model)


def test_patches_have_twice_the_latent() -> None:
    patchify = tiny_infinity(replace(INFINITY, patchify=True))
    assert sizes_of(["0.06M"], ["1:1"], patchify)[0].latent_size == (32, 32)


def test_the_manifest_has_the_first_size_as_the_models() -> None:
    source = tiny_infinity_source()
    info, sizes = source.model_info(), source.size_infos()
    assert [size.image_size for size in sizes] == [size.image_size for size in SIZES]
    assert info.of_size(sizes[0]) == info
    assert (info.num_classes, info.vocab_size, info.latent_channels) == (0, 2, 8)


# Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    save_infinity_checkpoints(tmp_path)
    return tmp_path


@pytest.fixture
def load(checkpoints: Path) -> Callable[..., InfinitySource]:
    def load(vae: str = "vae.pth", text: str | None = None, **options: Any) -> InfinitySource:
        folder = None if text is None else checkpoints / text
        return checkpoint_source(
            "mine", checkpoints / "infinity.pth", checkpoints / vae, ["0.06M"], ["1:1"], folder, **options
        )

    return load


def test_checkpoints_become_a_source(load: Callable[..., InfinitySource]) -> None:
    source = load(text="byt5", prompts=("a", "b"))
    assert source.infinity.config == INFINITY
    assert source.vae.config == VAE
    assert source.text is not None
    assert source.text.tokenizer.max_tokens == INFINITY.max_text
    assert source.description == "Built from `infinity.pth`, `vae.pth` and `byt5`."
    assert [len(text) for text in source.calibration_texts()] == [2, 2]


def test_an_unknown_size_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="--area"):
        checkpoint_source("mine", tmp_path / "none", tmp_path / "none", ["2M"], ["1:1"])


def test_a_vae_of_another_width_is_refused(checkpoints: Path, load: Callable[..., InfinitySource]) -> None:
    other = random_bsq_vae(replace(VAE, latent_channels=6))
    torch.save({"vae": other.state_dict()}, checkpoints / "other.pth")
    with pytest.raises(CheckpointError, match="has 6 latent channels, the transformer's tokens have 8 bits"):
        load(vae="other.pth")


def test_a_vae_of_another_stride_is_refused(checkpoints: Path, load: Callable[..., InfinitySource]) -> None:
    torch.save({"vae": random_bsq_vae(replace(VAE, ch_mult=(1, 1, 1))).state_dict()}, checkpoints / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth makes 4 x 4 pixels of a token, Infinity's have 16 x 16"):
        load(vae="other.pth")


def test_a_text_encoder_of_another_width_is_refused(checkpoints: Path, load: Callable[..., InfinitySource]) -> None:
    save_text_encoder(checkpoints / "wide", replace(TEXT, embed_dim=24))
    with pytest.raises(CheckpointError, match="wide makes features of 24 channels, the transformer reads 16"):
        load(text="wide")


def test_what_leaves_no_trace_is_told(checkpoints: Path, load: Callable[..., InfinitySource]) -> None:
    torch.save(in_chunks(random_state(INFINITY), 1), checkpoints / "infinity.pth")
    config = load(rope_mode=1, level_each_chunk=True).infinity.config
    assert (config.rope_mode, config.level_blocks) == (1, (0, 1))


# Texts of calibration


def test_learned_weights_need_a_text_encoder_to_calibrate(load: Callable[..., InfinitySource]) -> None:
    with pytest.raises(NextscaleError, match="give the text encoder's folder with --text"):
        load().calibration_texts()


def test_random_weights_are_calibrated_with_random_features() -> None:
    texts = tiny_infinity_source(text=None, random_seed=3).calibration_texts()
    assert len({text.shape for text in texts}) > 5
    together = np.concatenate(texts)
    assert together.dtype == np.float32
    assert together.shape[1] == INFINITY.text_channels
    # Of some 14,000 standard normal numbers; five standard errors.
    assert abs(together.mean()) < 5 / together.size**0.5
    assert abs(together.var() - 1) < 5 * (2 / together.size) ** 0.5
    again = tiny_infinity_source(text=None, random_seed=3).calibration_texts()
    assert all(np.array_equal(a, b) for a, b in zip(texts, again, strict=True))


def test_prompts_that_come_along_are_different_and_short_enough() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 64
    assert all(prompt == prompt.strip() and 0 < len(prompt.encode()) < 128 for prompt in PROMPTS)


def test_random_sources_say_what_they_are() -> None:
    with pytest.raises(NextscaleError, match="--ratio"):
        random_source("mine", "infinity-125m", ["1M"], ["9:1"], 0)
    with pytest.raises(NextscaleError, match="flan-t5-base makes features of 768 channels, the transformer reads 2048"):
        random_source("mine", "infinity-125m", ["1M"], ["1:1"], 0, "flan-t5-base")
    with pytest.raises(NextscaleError, match="did you mean infinity-125m"):
        random_source("mine", "infinity-125M", ["1M"], ["1:1"], 0)
