"""What the judge's training does to pictures, so that it does not learn the drawings by heart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.emoji.judge import SIDE, WINDOWS
from nextscale.demo.emoji.scenes import Batch

TURN, STRETCH, SHEAR = 0.2, 0.15, 0.15  # the most that a window is turned (radians), stretched (log) and sheared
HUE, GREY = 0.4, 0.15  # the most that hues turn, radians; the share of windows without colours
COVERED, COVER = 0.3, 0.3  # the share of windows of which a square is covered, and its side
WOBBLE, CELLS = 1.5, (16, 32)  # how far lines move, in pixels of the picture, and a side's cells, which move together
SOFTENED = 0.2  # the share of pictures whose detail is that of squares of two pixels a side, and of three
NOISE = 0.1  # the most that noise deviates


def first_window(batch: Batch, noise: torch.Generator) -> Tensor:
    """Where each picture's first thing is: the whole picture of one thing, a half of two; somewhat moved, [B, 3]."""
    x, y = batch.places[:, 0, 1:3].unbind(1)
    quarters = torch.stack([_quarter(x), _quarter(y), torch.full_like(x, 0.5)], dim=1)
    whole = quarters.new_tensor(WINDOWS["whole"])
    windows = torch.where(batch.sprites[:, 1:] < 0, whole, quarters)
    moved = torch.rand(windows.shape, generator=noise, device=x.device) * 2 - 1
    return windows + moved * windows[:, 2:] * windows.new_tensor((0.05, 0.05, 0.1))


def _quarter(position: Tensor) -> Tensor:
    """A coordinate of the middle of the half that a position is in: 0.25, 0.5 or 0.75."""
    return 0.5 + 0.25 * ((position > 0.6).float() - (position < 0.4).float())


def turned(frames: Tensor, noise: torch.Generator) -> Tensor:
    """Frames [B, 2, 3] somewhat rotated, stretched and sheared about their middles."""
    random = torch.rand(len(frames), 3, generator=noise, device=frames.device) * 2 - 1
    angle, stretch, shear = (random * random.new_tensor((TURN, STRETCH, SHEAR))).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    wide, high = stretch.exp(), (-stretch).exp()
    change = torch.stack((wide * cos, shear - sin, sin, high * cos), dim=1).unflatten(1, (2, 2))
    return torch.cat((frames[:, :, :2] @ change, frames[:, :, 2:]), dim=2)


def redrawn(pictures: Tensor, noise: torch.Generator) -> Tensor:
    """Pictures [B, 3, H, W] as if drawn again by an unsteady hand: lines wobble in most, some are less sharp, and there
    is noise of one pixel and of four.
    """
    count, device, size = len(pictures), pictures.device, pictures.shape[2:]

    def random(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=noise, device=device)

    def normal(channels: int, *cells: int) -> Tensor:
        return torch.randn(count, channels, *cells, generator=noise, device=device)

    moves = pictures.new_zeros(count, 2, *size)
    for cells in CELLS:
        strength = WOBBLE / len(CELLS) * (2 * random(1, 1, 1) - 1).clamp(min=0)  # none in half of the pictures
        moves += F.interpolate(strength * normal(2, cells, cells), size=size, mode="bicubic")
    where = F.affine_grid(torch.eye(2, 3, device=device).expand(count, 2, 3), [count, 3, *size], align_corners=False)
    where = where + moves.permute(0, 2, 3, 1) * 2 / where.new_tensor(size[::-1])
    pictures = F.grid_sample(pictures, where, padding_mode="border", align_corners=False)
    chosen = random(1, 1, 1)
    for i, side in enumerate((2, 3)):
        soft = F.interpolate(F.avg_pool2d(pictures, side, ceil_mode=True), size=size, mode="bilinear")
        pictures = torch.where((i * SOFTENED <= chosen) & (chosen < (i + 1) * SOFTENED), soft, pictures)
    for side in (1, 4):
        coarse = F.interpolate(normal(3, size[0] // side, size[1] // side), size=size, mode="bilinear")
        pictures = pictures + NOISE * random(1, 1, 1) * coarse
    return pictures


def disturbed(windows: Tensor, noise: torch.Generator) -> Tensor:
    """Windows [B, 3, 224, 224] in other colours, now and then grey or covered in part."""
    count, device = len(windows), windows.device

    def random(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=noise, device=device)

    windows = recoloured(windows, HUE * (2 * random() - 1), torch.where(random() < GREY, 0.0, 0.4 + random()))
    gain, shift = 0.75 + 0.5 * random(3, 1, 1), 0.4 * random(3, 1, 1) - 0.2
    windows = windows * gain + shift
    along = torch.arange(SIDE, device=device)
    across, down = ((along - SIDE * random(1)).abs() < COVER * SIDE / 2 for _ in range(2))
    covered = down[:, None, :, None] & across[:, None, None] & (random(1, 1, 1) < COVERED)
    return torch.where(covered, 2 * random(3, 1, 1) - 1, windows)


def recoloured(windows: Tensor, angle: Tensor, saturation: Tensor) -> Tensor:
    """Colours turned about the axis of greys by an angle [B], and their distance from it multiplied by [B]."""
    grey = windows.new_tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, 1]]) / 3
    # The cross product with the axis.
    quarter = windows.new_tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    angle, saturation = angle[:, None, None], saturation[:, None, None]
    change = grey + saturation * (angle.cos() * (torch.eye(3, device=windows.device) - grey) + angle.sin() * quarter)
    return (change @ windows.flatten(2)).view_as(windows)
