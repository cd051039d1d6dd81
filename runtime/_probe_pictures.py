"""Pictures that are the same everywhere, to see whether an encoder is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._manifest import Size
from nextscale.runtime._uniforms import uniforms

# Squares of each size in turn add up, so that every stage has something to say.
GRIDS = (1, 2, 4, 8, 16)
CONTRAST = 50


def probe_pictures(size: Size, count: int) -> NDArray[np.uint8]:
    """uint8 [count, H, W, 3]: coloured squares of several sizes, from the uniforms of seed 0."""
    height, width = size
    numbers = uniforms(0, range(count), 3 * sum(grid * grid for grid in GRIDS)).astype(np.float64) - 0.5
    total, begin = np.full((count, height, width, 3), 127.5), 0
    for grid in GRIDS:
        squares = numbers[:, begin : begin + 3 * grid * grid].reshape(count, grid, grid, 3)
        begin += 3 * grid * grid
        lines, columns = (np.arange(side) * grid // side for side in size)
        total += 2 * CONTRAST * squares[:, lines[:, None], columns]
    return np.clip(total, 0, 255).astype(np.uint8)
