"""Edit photographs of any size with a model of one size: what the model sees of them, and how it comes back.

A photograph lies on a canvas, perhaps larger than itself. The model sees a window of the canvas, of the model's own
proportions where all that is made anew fits into one, and else the whole canvas, squeezed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale.runtime._edit import Mask, blend, box_mask
from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import ModelInfo, Size
from nextscale.runtime._read_picture import MOST_PIXELS

Pixels = NDArray[np.uint8]
Side = Literal["top", "left", "bottom", "right"]
SIDES: tuple[Side, ...] = ("top", "left", "bottom", "right")
MOST_EXTENSION = 4.0  # of a side, as a share of the picture's height or width


@dataclass(frozen=True)
class Window:
    """A part of a canvas in pixels."""

    y: int
    x: int
    height: int
    width: int

    def of(self, array: NDArray) -> NDArray:
        """That part of an array [H, W, ...]."""
        return array[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Canvas:
    """What is edited.

    Attributes:
        pixels: uint8 [H, W, 3].
        mask: bool [H, W], True where pixels are made anew; None: everywhere.
    """

    pixels: Pixels
    mask: Mask | None

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[:2]
        return height, width

    def window(self, model: ModelInfo) -> Window:
        """What the model sees: see above. A window is as large as it can be, its middle near that of the mask."""
        height, width = self.size
        whole = Window(0, 0, height, width)
        if self.mask is None:
            return whole
        tall, wide = model.image_size
        scale = min(height / tall, width / wide)
        h, w = min(height, round(tall * scale)), min(width, round(wide * scale))
        marked = [np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0)]
        starts = []
        for places, side, total in zip(marked, (h, w), (height, width), strict=True):
            first, end = int(places[0]), int(places[-1]) + 1
            if end - first > side:
                return whole
            starts.append(min(max((first + end - side) // 2, 0), total - side))
        y, x = starts
        return Window(y, x, h, w)

    def seen(self, window: Window, model: ModelInfo) -> tuple[Pixels, Mask | None]:
        """The window at the model's size, and its mask."""
        mask = None if self.mask is None else resized_mask(window.of(self.mask), model.image_size)
        return resized(window.of(self.pixels), model.image_size), mask

    def with_window(self, made: Pixels, window: Window, feather: int) -> Pixels:
        """The canvas with what the model made of its window, uint8 [h, w, 3], within the mask and a seam of this width.

        Without a mask, or with a feather below 0, all of the window is the model's.
        """
        result = self.pixels.copy()
        part = window.of(result)
        new = resized(made, (window.height, window.width))
        if self.mask is None or feather < 0:
            part[:] = new
        else:
            part[:] = blend(part, new, window.of(self.mask), feather)
        return result

    def extended(self, sides: Mapping[Side, float]) -> Canvas:
        """The picture as a part of a larger one: shares of its height or width are added at sides, and made anew.

        What is added continues the picture's edge until it is made anew.

        Raises:
            RequestError: a share that is not above 0, or above MOST_EXTENSION, or less than a pixel; more than
                MOST_PIXELS in all.
        """
        height, width = self.size
        added = dict.fromkeys(SIDES, 0)
        for side, share in sides.items():
            if not 0 < share <= MOST_EXTENSION:
                raise RequestError(f"extend {side}={share:g}: expected more than 0 and at most {MOST_EXTENSION:g}")
            added[side] = round(share * (height if side in ("top", "bottom") else width))
            if not added[side]:
                raise RequestError(f"extend {side}={share:g}: less than a pixel; give a larger share")
        around = ((added["top"], added["bottom"]), (added["left"], added["right"]))
        tall, wide = height + sum(around[0]), width + sum(around[1])
        if tall * wide > MOST_PIXELS:
            raise RequestError(
                f"extend: {wide} x {tall} pixels are more than {MOST_PIXELS // 10**6} million; give smaller shares"
            )
        mask = np.zeros(self.size, np.bool_) if self.mask is None else self.mask
        return Canvas(np.pad(self.pixels, (*around, (0, 0)), mode="edge"), np.pad(mask, around, constant_values=True))

    def with_box(self, box: Sequence[float], model: ModelInfo, *, outpaint: bool = False) -> Canvas:
        """The same with a mask that is a box, or with `outpaint` all but it: y0, x0, y1, x1 as shares.

        Ends of a box in a picture of the model's proportions are rounded to positions of the latent, as the official
        code does; in others, to pixels.

        Raises:
            RequestError: the box is not within the picture, or has nothing of it, or, with `outpaint`, all.
        """
        height, width = self.size
        if height * model.image_size[1] == width * model.image_size[0]:
            latent = box_mask(model.latent_size, box)
            lines, columns = (
                (2 * np.arange(side) + 1) * n // (2 * side) for side, n in zip(self.size, latent.shape, strict=True)
            )
            inside: Mask = latent[lines[:, None], columns]
        else:
            inside = box_mask(self.size, box)
        if not inside.any():
            raise RequestError("box: less than a pixel; give a larger one")
        mask = ~inside if outpaint else inside
        if not mask.any():
            raise RequestError("outpaint: the box is all of the picture, so that there is nothing to make anew")
        return replace(self, mask=mask)


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Lanczos; the same array if it has that size."""
    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def resized_mask(mask: Mask, size: Size) -> Mask:
    """Along each side a pixel is marked if one of those is whose middle lies in it; or, of a side that grows, the one
    that its own middle lies in.
    """
    for axis, (old, new) in enumerate(zip(mask.shape, size, strict=True)):
        places = np.arange(new)
        if old > new:
            mask = np.logical_or.reduceat(mask, (2 * places * old + new - 1) // (2 * new), axis=axis)
        else:
            mask = mask.take((2 * places + 1) * old // (2 * new), axis=axis)
    return mask


def feather_of(window: Window, model: ModelInfo) -> int:
    """The seam's width on the canvas: a quarter of a position of the latent."""
    return max(1, round(window.height / model.latent_size[0] / 4))
