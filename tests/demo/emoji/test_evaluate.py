from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nextscale.demo.emoji import evaluate
from nextscale.demo.emoji.captions import COLOURS
from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.evaluate import behind, draw, real, score
from nextscale.demo.emoji.prompts import Prompt, Settings
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.demo.emoji.weights import INFINITY, TEXT, VAE, save_infinity, save_module, save_text
from nextscale.models.infinity.bsq_vae import BSQVAE

CPU = torch.device("cpu")


@pytest.fixture
def prompts(sprites: Sprites) -> list[Prompt]:
    a, b, c, _ = (e.name for e in sprites.emoji)
    return [
        Prompt("seen", f"flat {b} on a white background", "flat", "white", ((b, "whole"),)),
        Prompt("seen", f"noto {c} on a white background", "noto", "white", ((c, "whole"),)),
        Prompt("two", f"flat {a} above {b} on a navy background", "flat", "navy", ((a, "top"), (b, "bottom"))),
    ]


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_behind_is_that_of_the_edge(colour: str) -> None:
    pixels = np.full((2, 128, 128, 3), COLOURS[colour], np.uint8)
    pixels[0, 10:118, 10:118] = 77
    pixels[1, :40, :3] = 200  # a specklike thing at the edge
    assert behind(pixels) == [colour, colour]


def test_the_sprites_have_the_colour_of_their_prompts(sprites: Sprites, prompts: list[Prompt]) -> None:
    pixels = real(sprites, prompts, CPU, None, TINY)
    assert behind(pixels) == ["white", "white", "navy"]


class Sees(nn.Module):
    """A judge that says the same of every window: these looks and this style."""

    def __init__(self, looks: int, style: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.said = looks, style

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(nn.functional.one_hot(torch.full((len(windows),), i), 9).float() for i in self.said)  # type: ignore[return-value]


def test_scores_are_shares_of_pictures_with_all_that_was_asked(sprites: Sprites, prompts: list[Prompt]) -> None:
    pixels = real(sprites, prompts, CPU, None, TINY)
    found = score(Sees(1, 3), sprites, prompts, pixels)  # type: ignore[arg-type]
    assert found["seen"] == {
        "count": 2,
        "objects": 0.5,
        "kin": 0.5,
        "error": pytest.approx(1.96 * math.sqrt(0.25 / 2)),
        "style": 0.5,
        "colour": 1.0,
    }
    assert (found["two"]["objects"], found["two"]["style"], found["two"]["colour"]) == (0, 1, 1)


def test_concepts_that_look_alike_are_one(sprites: Sprites, prompts: list[Prompt]) -> None:
    alike = replace(sprites, looks=np.array([0, 0, 0, 1]))
    pixels = real(sprites, prompts, CPU, None, TINY)
    found = score(Sees(0, 3), alike, prompts, pixels)  # type: ignore[arg-type]
    assert [found[kind]["objects"] for kind in ("seen", "two")] == [1, 1]


def test_pictures_by_weights_do_not_depend_on_the_batch(
    prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextToBits(TINY, seed=0)
    save_infinity(model.infinity, tmp_path / INFINITY, step=0)
    save_text(model.text, tmp_path / TEXT, step=0)
    save_module(BSQVAE(TINY.models.vae), tmp_path / VAE, step=0)
    together = draw(tmp_path, TINY, prompts, Settings(), CPU)
    assert together.shape == (3, 128, 128, 3)
    assert together.dtype == np.uint8
    monkeypatch.setattr(evaluate, "BATCH", 1)
    alone = draw(tmp_path, TINY, prompts, Settings(), CPU)
    # A pixel's value before rounding differs in the last bits of float32.
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(draw(tmp_path, TINY, prompts, Settings(seed=1), CPU), together)


def test_gender_does_not_count_among_kin(sprites: Sprites, prompts: list[Prompt]) -> None:
    codes = ("1f680", "1f469-200d-1f680", "1f468-200d-1f680", "1f408")
    emoji = tuple(replace(e, code=code) for e, code in zip(sprites.emoji, codes, strict=True))
    pixels = real(sprites, prompts, CPU, None, TINY)
    found = score(Sees(1, 3), replace(sprites, emoji=emoji), prompts, pixels)  # type: ignore[arg-type]
    assert (found["seen"]["objects"], found["seen"]["kin"], found["two"]["kin"]) == (0.5, 1, 0)
