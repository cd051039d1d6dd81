"""Rotary positions in two dimensions: cos and sin of each token's angles (`precompute_rope2d_freqs_grid` officially).

Of the d/2 pairs of a head's channels, (2i, 2i + 1), the first half turns by the token's row and the second by its
column, each by position times theta_k = 10000^(-2k / (d/2)), k in [0, d/4). A stage's tokens are spread over the last
of all scales of their ratio, also where a size stops before it.

Positions and angles are made with torch in float32, so that ties are rounded as in the official code: half to even.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.models.infinity.schedules import SCALES, Ratio, Size

# How a token's position follows from its row or column: its index; interpolated over a grid of 128 positions; or
# rounded to the last scale's grid, as all releases have it (`rope2d_normalized_by_hw`).
RopeMode = Literal[0, 1, 2]
BASE = 10000.0
GRID = 128  # positions of the longer side in mode 1


@cache
def rope_table(ratio: Ratio, si: int, head_dim: int, mode: RopeMode = 2) -> tuple[Tensor, Tensor]:
    """cos and sin of the tokens of a stage, each float32 [l, d/2], rows before columns; not to be modified.

    Args:
        ratio: a key of SCALES.
        si: index of the stage.
        head_dim: d, a multiple of 4.
        mode: see RopeMode.
    """
    height, width = SCALES[ratio][si]
    last_height, last_width = SCALES[ratio][-1]
    longest = max(last_height, last_width)
    by_row = _side(height, last_height, GRID * last_height // longest, head_dim, mode)
    by_column = _side(width, last_width, GRID * last_width // longest, head_dim, mode)
    both = torch.cat(
        (by_row[:, :, None].expand(-1, -1, width, -1), by_column[:, None].expand(-1, height, -1, -1)), dim=-1
    )
    cos, sin = both.flatten(1, 2).unbind()
    return cos, sin


def rope_tables(size: Size, head_dim: int, mode: RopeMode = 2) -> tuple[Tensor, Tensor]:
    """cos and sin of all tokens of a size, each float32 [L, d/2]."""
    stages = [rope_table(size.ratio, si, head_dim, mode) for si in range(size.num_stages)]
    return torch.cat([cos for cos, _ in stages]), torch.cat([sin for _, sin in stages])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of the channels: [..., l, d] by cos and sin [l, d/2]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _side(length: int, last: int, grid: int, head_dim: int, mode: RopeMode) -> Tensor:
    """cos and sin of the rows, or columns, of a stage: [2, length, d/4].

    Args:
        length: how many there are.
        last, grid: how many the last scale has, and the grid of mode 1.
    """
    half = head_dim // 2
    theta = 1.0 / BASE ** (torch.arange(0, half, 2).float() / half)
    if mode == 1:
        angles = torch.outer(torch.arange(grid).float(), theta)
        turned = torch.stack((angles.cos(), angles.sin())).transpose(1, 2)
        return F.interpolate(turned, size=length, mode="linear", align_corners=True).transpose(1, 2)
    positions = torch.arange(length) * (last / length) if mode == 2 else torch.arange(length)
    angles = torch.outer(positions.round().float(), theta)
    return torch.stack((angles.cos(), angles.sin()))
