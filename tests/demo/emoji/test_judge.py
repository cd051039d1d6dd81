from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.demo.emoji.judge import SIDE, TINY_JUDGE, WINDOWS, Judge, cut, load_judge
from nextscale.demo.emoji.scenes import LEFT, LOWER, RIGHT, UPPER, Placed, Scene, batch_of
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.train_judge import disturbed, first_window
from nextscale.demo.emoji.weights import JUDGE, save_module

# A mean of four values of order 1, sampled at float32 coordinates of up to 128 pixels.
ATOL = 4 * 128 * 2**-23


def picture() -> torch.Tensor:
    return torch.rand(1, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_whole_picture_is_averaged() -> None:
    found = cut(picture(), torch.tensor([WINDOWS["whole"]]))
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(picture(), 2), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("window", "rows", "columns"), [("left", 0.25, 0), ("right", 0.25, 0.5), ("top", 0, 0.25), ("bottom", 0.5, 0.25)]
)
def test_a_half_is_what_is_drawn_there(window: str, rows: float, columns: float) -> None:
    """A window whose pixels are all of one colour, in a picture of another."""
    image = torch.zeros(1, 3, 128, 128)
    top, left = int(128 * rows), int(128 * columns)
    image[..., top : top + 64, left : left + 64] = 1
    found = cut(image, torch.tensor([WINDOWS[window]]))
    torch.testing.assert_close(found[..., 1:-1, 1:-1], torch.ones(1, 3, SIDE - 2, SIDE - 2), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("place", "window"), [(LEFT, "left"), (RIGHT, "right"), (UPPER, "top"), (LOWER, "bottom")])
def test_training_looks_where_the_first_of_two_things_is(
    place: tuple[float, float], window: str, sprites: Sprites
) -> None:
    other = {LEFT: RIGHT, RIGHT: LEFT, UPPER: LOWER, LOWER: UPPER}[place]
    two = Scene((Placed(0, 0.5, *place), Placed(1, 0.5, *other)), (0, 0, 0), "caption", None, None)
    one = Scene((Placed(0, 0.9, *place),), (0, 0, 0), "caption", None, None)
    found = first_window(batch_of([two, one], sprites), torch.Generator().manual_seed(0))
    for row, name in enumerate((window, "whole")):
        moved = (found[row] - torch.tensor(WINDOWS[name])).abs() / WINDOWS[name][2]
        assert (moved <= torch.tensor((0.05, 0.05, 0.1)) + 1e-6).all()
        assert moved.any()


def test_disturbances_are_the_generators() -> None:
    windows = torch.rand(4, 3, SIDE, SIDE)
    first, again, other = (disturbed(windows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_judge_is_what_was_written(tmp_path: Path) -> None:
    judge = Judge(5, TINY_JUDGE)
    save_module(judge, tmp_path / JUDGE, step=1)
    loaded = load_judge(tmp_path / JUDGE, 5, TINY_JUDGE)
    looks, style = loaded(torch.zeros(2, 3, SIDE, SIDE))
    assert (looks.shape, style.shape) == ((2, 5), (2, 7))
    for name, parameter in judge.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.half().float())
