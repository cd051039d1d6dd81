"""VAR's resampling between stages as constant matrices.

Bicubic upsampling (a = -0.75, align_corners off) and area downsampling of fixed sizes are linear, so a stage needs one
matrix product for each. Rows of all stages are stacked, so that a graph takes its stage's rows with one Slice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsampling_matrix(patch_nums: tuple[int, ...]) -> Tensor:
    """Token maps to the latent's grid: float32 [L, H*W]; h [Cvae, pn*pn] @ its stage's rows is the upsampled map."""
    side = patch_nums[-1]
    blocks = []
    for si, pn in enumerate(patch_nums):
        basis = torch.eye(pn * pn).view(pn * pn, 1, pn, pn)
        if si != len(patch_nums) - 1:
            basis = F.interpolate(basis, size=(side, side), mode="bicubic")
        blocks.append(basis.flatten(1))
    return torch.cat(blocks)


def downsampling_matrix(patch_nums: tuple[int, ...]) -> Tensor:
    """f_hat to the input of stages 1 and up: float32 [L - patch_nums[0]**2, H*W].

    A stage's rows @ f_hat [H*W, Cvae] is the downsampled latent; stage 0 takes no input.
    """
    return torch.cat([pooling_matrix(patch_nums[-1], pn) for pn in patch_nums[1:]])


def pooling_matrix(side: int, smaller: int) -> Tensor:
    """The area downsampling of a grid, float32 [smaller**2, side**2]: its rows @ the grid [side**2, ...]."""
    basis = torch.eye(side * side).view(side * side, 1, side, side)
    return F.interpolate(basis, size=(smaller, smaller), mode="area").flatten(1).T
