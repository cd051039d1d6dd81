from __future__ import annotations

import pytest
import torch

from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.icons import SIDE
from nextscale.demo.emoji.scenes import Placed, Scene, batch_of
from nextscale.demo.emoji.sprites import Sprites

GREY = (102.0, 102.0, 102.0)
# Sampling at float32 coordinates of up to SIDE pixels: an error of SIDE 2^-23 of a pixel, at outlines of 255 / 255.
ATOL = 4 * SIDE * 2**-23


@pytest.fixture(scope="module")
def draw(sprites: Sprites) -> Compositor:
    return Compositor(sprites, torch.device("cpu"))


def picture(draw: Compositor, sprites: Sprites, *objects: Placed) -> torch.Tensor:
    """[3, 128, 128] in [0, 1]."""
    return (draw(batch_of([Scene(objects, GREY, "caption", None, None)], sprites))[0] + 1) / 2


def over_grey(sprites: Sprites, index: int) -> torch.Tensor:
    rgba = torch.from_numpy(sprites.pixels([index])[0]).float() / 255
    return rgba[:3] + (1 - rgba[3:]) * 0.4


def test_a_sprite_of_the_pictures_size_is_laid_over_the_background(draw: Compositor, sprites: Sprites) -> None:
    found = picture(draw, sprites, Placed(2, 1.0, 0.5, 0.5))
    torch.testing.assert_close(found, over_grey(sprites, 2), rtol=0, atol=ATOL)


def test_a_mirrored_sprite(draw: Compositor, sprites: Sprites) -> None:
    found = picture(draw, sprites, Placed(3, 1.0, 0.5, 0.5, mirrored=True))
    assert not torch.equal(over_grey(sprites, 3), over_grey(sprites, 3).flip(2))
    torch.testing.assert_close(found, over_grey(sprites, 3).flip(2), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("x", "y"), [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)])
def test_half_as_large_it_fills_a_quarter_of_the_picture(
    draw: Compositor, sprites: Sprites, x: float, y: float
) -> None:
    """Each pixel is the mean of four of the sprite's, which were rounded to 1/255."""
    found, half = picture(draw, sprites, Placed(3, 0.5, x, y)), SIDE // 2
    left, top = (int(half * (2 * t - 0.5)) for t in (x, y))
    expected = torch.nn.functional.avg_pool2d(over_grey(sprites, 3), 2)
    torch.testing.assert_close(found[:, top : top + half, left : left + half], expected, rtol=0, atol=1 / 255)
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[top : top + half, left : left + half] = False
    torch.testing.assert_close(found[:, outside], torch.full_like(found[:, outside], 0.4), rtol=0, atol=ATOL)


def test_the_second_lies_over_the_first(draw: Compositor, sprites: Sprites) -> None:
    first, second = Placed(0, 1.0, 0.5, 0.5), Placed(1, 1.0, 0.5, 0.5)
    found = picture(draw, sprites, first, second)
    rgba = torch.from_numpy(sprites.pixels([1])[0]).float() / 255
    expected = rgba[:3] + (1 - rgba[3:]) * over_grey(sprites, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * ATOL)
