"""The arithmetic of editing: from a mask of pixels to forced tokens, and from a new picture back into the old one.

A mask is True where pixels are made anew. All of this is in whole numbers, or in floats in a stated order, so that
other languages find the same tokens and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import ModelInfo, Size
from nextscale.runtime._wording import shown_value

Mask = NDArray[np.bool_]
# Where a stage has no more tokens than this, all are kept (VAR's notebook of zero-shot editing).
FEW_TOKENS = 3
SAMPLED = -1


def latent_mask(mask: Mask, model: ModelInfo) -> Mask:
    """Positions of the latent that are made anew, [h, w]: those of which any pixel is, of a mask [H, W].

    Raises:
        RequestError: the picture is no multiple of the latent.
    """
    (height, width), (lines, columns) = model.image_size, model.latent_size
    if height % lines or width % columns:
        raise RequestError(
            f"pictures of {height} x {width} can't be edited: they are no multiple of {lines} x {columns}"
        )
    return np.asarray(mask.reshape(lines, height // lines, columns, width // columns).any(axis=(1, 3)))


def pixel_mask(latent: Mask, model: ModelInfo) -> Mask:
    """The pixels of the positions of a latent, [h, w] -> [H, W]."""
    (height, width), (lines, columns) = model.image_size, model.latent_size
    return latent.repeat(height // lines, axis=0).repeat(width // columns, axis=1)


def box_mask(size: Size, box: Sequence[float]) -> Mask:
    """True within y0, x0, y1, x1, shares of the height and the width; each end is rounded, halves to even.

    Raises:
        RequestError: the box is not within the picture, or has nothing of it.
    """
    y0, x0, y1, x1 = box
    if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
        raise RequestError(
            f"box {','.join(f'{end:g}' for end in box)}: expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1 and "
            "0 <= x0 < x1 <= 1, shares of the picture's height and width"
        )
    height, width = size
    mask = np.zeros(size, np.bool_)
    mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = True
    if not mask.any():
        raise RequestError(f"box {','.join(f'{end:g}' for end in box)}: less than a token; give a larger one")
    return mask


def kept_tokens(latent: Mask, model: ModelInfo) -> Mask:
    """Which tokens of all stages are kept, [L], where positions of the latent [h, w] are made anew.

    The kept positions, 1 or 0, are resized to each stage, bilinear between the centres of pixels and without a filter,
    and those above 1/2 are kept; where a stage has at most FEW_TOKENS, all are.
    """
    kept = (~latent).astype(np.float64)
    stages = [
        np.ones(lines * columns, np.bool_)
        if lines * columns <= FEW_TOKENS
        else (_resized(kept, (lines, columns)) > 0.5).ravel()
        for lines, columns in model.stage_sizes
    ]
    return np.concatenate(stages)


def _resized(x: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """x [h, w] at `size`: sums in float64, of two columns and then of two lines."""
    (a, v), (b, u) = (_places(old, new) for old, new in zip(x.shape, size, strict=True))
    next_a, next_b = np.minimum(a + 1, x.shape[0] - 1), np.minimum(b + 1, x.shape[1] - 1)
    upper, lower = ((1 - u) * x[rows][:, b] + u * x[rows][:, next_b] for rows in (a, next_a))
    found: NDArray[np.float64] = (1 - v)[:, None] * upper + v[:, None] * lower
    return found


def _places(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What each of `new` numbers lies behind among `old`, and how far.

    Places and their step are rounded to float32, as the official code's are: a place that is meant to be a half decides
    by that what is kept.
    """
    step = float(np.float32(old) / np.float32(new))
    at = np.maximum((step * (np.arange(new) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    first = at.astype(np.int64)
    return first, (at - first.astype(np.float32)).astype(np.float64)


def forced_tokens(
    token_maps: NDArray[np.int64], latent: Mask | None, keep_stages: int, model: ModelInfo
) -> NDArray[np.int64]:
    """The tokens of pictures, -1 where they are made anew: a token that is kept is kept with all its bits.

    Args:
        token_maps: of the pictures, int64 [B, L] or [B, L, d].
        latent: positions that are made anew, [h, w]; None: all.
        keep_stages: all tokens of so many first stages are kept.
        model: its stages.
    Returns:
        int64 of the shape of token_maps.
    """
    begin = model.stage_slices[keep_stages].start if keep_stages < model.num_stages else model.num_tokens
    kept = np.zeros(model.num_tokens, np.bool_) if latent is None else kept_tokens(latent, model)
    kept[:begin] = True
    return np.where(kept.reshape(-1, *[1] * (token_maps.ndim - 2)), token_maps, SAMPLED)


def default_feather(model: ModelInfo) -> int:
    """The seam's width in pixels where none is told: a quarter of a position of the latent."""
    return model.image_size[0] // model.latent_size[0] // 4


def blend(old: NDArray[np.uint8], new: NDArray[np.uint8], mask: Mask, feather: int) -> NDArray[np.uint8]:
    """The new picture within the mask, the old one elsewhere, and a seam within the mask where one becomes the other.

    A pixel d steps inside the mask (the king's, 1 at its edge; the picture's border is none) has the share
    min(d, feather + 1) / (feather + 1) of the new picture, rounded half up.

    Args:
        old, new: uint8 [..., H, W, 3].
        mask: [H, W].
        feather: width of the seam in pixels, at least 0.
    """
    steps = feather + 1
    mixed = np.empty(np.broadcast_shapes(old.shape, new.shape), np.uint8)
    for y, depth in enumerate(_depths(mask, steps)):  # line by line: sums take four bytes
        share = depth[:, None]
        total = old[..., y, :, :] * (steps - share) + new[..., y, :, :] * share
        mixed[..., y, :, :] = (2 * total + steps) // (2 * steps)
    return mixed


def _depths(mask: Mask, most: int) -> NDArray[np.int32]:
    """The king's steps from each pixel to the nearest outside the mask, at most `most`: int32 [H, W].

    Once from the first pixel to the last and once back, each takes one step more than the nearest of its neighbours
    before it has (Rosenfeld and Pfaltz, 1966).
    """
    depths = np.where(mask, np.int32(most), np.int32(0))
    columns = np.arange(mask.shape[1], dtype=np.int32)
    for lines in (depths, depths[::-1, ::-1]):
        before = np.full(mask.shape[1], most, np.int32)
        for line in lines:
            nearest = before.copy()
            np.minimum(nearest[1:], before[:-1], out=nearest[1:])
            np.minimum(nearest[:-1], before[1:], out=nearest[:-1])
            line[:] = np.minimum.accumulate(np.minimum(line, nearest + 1) - columns) + columns
            before = line
    return depths


def require_mask(mask: object, model: ModelInfo) -> Mask:
    """A mask of the model's size with something to make anew.

    Raises:
        RequestError: no bool [H, W] array, or none of it is True.
    """
    height, width = model.image_size
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != model.image_size:
        raise RequestError(f"mask: expected bool [{height}, {width}], found {shown_value(mask)}")
    if not mask.any():
        raise RequestError("mask: nothing is marked, so that there is nothing to make anew")
    return mask
