"""What the programs write, built into a bundle: its pictures are those that `evaluate` draws by the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_emoji import write_tiny_emoji
from tiny_model import ONE_THREAD

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.demo.emoji import sheet
from nextscale.demo.emoji.bundle import emoji_source
from nextscale.demo.emoji.calibration import load_captions
from nextscale.demo.emoji.captions import TEXT_LENGTH
from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.evaluate import draw, draw_with
from nextscale.demo.emoji.prompts import Prompt, Settings, load_prompts
from nextscale.demo.emoji.weights import TEXT, save_text
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime._bundle import Bundle
from nextscale.runtime.image_io import read_picture_parameters

PROMPTS = [
    Prompt("seen", text, "flat", "white", (("cat", "whole"),)) for text in ("flat cat on a white background", "dog")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_emoji(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a recipe."""

    @cache
    def build(recipe: str) -> Path:
        loaded = load_recipe(recipe)
        loaded = replace(loaded, calibration=replace(loaded.calibration, images=2))
        path = tmp_path_factory.mktemp("bundle") / recipe
        source = emoji_source(run, "emoji", TINY)
        build_bundle(source, path, BuildOptions(loaded, session=ONE_THREAD), lambda *step: None)
        return path

    return build


def test_a_bundle_draws_what_the_weights_draw(run: Path, bundle: Callable[[str], Path]) -> None:
    """The same bits, but for log-odds that are nearer to a random number than float32 tells: none here."""
    found = draw_with(bundle("fp32"), PROMPTS, Settings())
    expected = draw(run, TINY, PROMPTS, Settings(), torch.device("cpu"))
    # Pixels before rounding differ in the last bits of float32.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 10


def test_int8_is_calibrated_on_captions_and_says_what_the_model_is(bundle: Callable[[str], Path]) -> None:
    opened = Bundle.open(bundle("default"))
    assert (opened.manifest.name, opened.manifest.recipe["name"]) == ("emoji", "default")
    assert "a style, a thing and a colour" in (bundle("default") / "card.md").read_text(encoding="utf-8")


def test_a_sheet_has_the_first_pictures_above_the_second() -> None:
    numbers = np.random.default_rng(0)
    rows = [numbers.integers(0, 256, (3, 128, 128, 3), np.uint8) for _ in range(2)]
    found = np.asarray(sheet.captioned(rows, ["a cat", "a dog " * 9, "a hat"], columns=2))
    step = 128 + sheet.GAP
    cell = 2 * step + sheet.CAPTION
    assert found.shape == (2 * cell, step + 128, 3)
    for i, (top, left) in enumerate(((0, 0), (0, step), (cell, 0))):
        for row, pixels in enumerate(rows):
            begin = top + row * step
            assert np.array_equal(found[begin : begin + 128, left : left + 128], pixels[i])
        assert found[top + 2 * step : top + cell, left : left + 128].min() < 100  # of its own caption
    assert found[cell:, step:].min() == 255


def test_a_sheet_of_bundles(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    prompts, files = [p.prompt for p in PROMPTS], (tmp_path / "prompts.json", tmp_path / "sheet.png")
    files[0].write_text(json.dumps(prompts), encoding="utf-8")
    both = [argument for recipe in ("fp32", "default") for argument in ("--bundle", str(bundle(recipe)))]
    sheet.main.main([*both, "--prompts", str(files[0]), "--out", str(files[1])], standalone_mode=False)
    expected = draw_with(bundle("default"), PROMPTS, load_prompts()[0])
    with Image.open(files[1]) as picture:
        found = np.asarray(picture)
    top = 128 + sheet.GAP
    assert np.array_equal(found[top : top + 128, :128], expected[0])
    parameters = read_picture_parameters(files[1])
    assert parameters is not None
    assert (parameters["prompts"], parameters["rows"]) == (prompts, ["fp32", "default"])


def test_committed_prompts_fit_the_model() -> None:
    assert (len(load_captions()), len(sheet.sheet_prompts())) == (64, 16)
    for prompt in (*load_captions(), *sheet.sheet_prompts()):
        assert prompt.isascii()
        assert len(prompt) < TEXT_LENGTH


def test_parts_that_do_not_belong_together_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    save_text(random_t5(replace(TINY.text, embed_dim=64), 0), tmp_path / "run" / TEXT, step=0)
    with pytest.raises(CheckpointError, match="features of 64 channels, the transformer reads 32"):
        emoji_source(tmp_path / "run", "emoji", TINY)
