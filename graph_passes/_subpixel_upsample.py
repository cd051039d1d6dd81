"""Nearest upsampling x2 and a 3x3 convolution as four 2x2 convolutions of the small picture.

Output pixel (2y + i, 2x + j) reads upsampled rows 2y + i - 1, 2y + i, 2y + i + 1, which are copies of only two rows of
the small picture: y - 1, y, y for i = 0 and y, y, y + 1 for i = 1, and columns likewise. Summing the taps that meet the
same pixel makes one 2x2 kernel for each (i, j), exact but for the rounding of the sums, with 16 instead of 36
multiply-adds a small pixel. The padding stays: an upsampled border is the small picture's border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# _SUMS[i][tap of 2, tap of 3]: which of the 3 taps fall on which of the 2 rows (or columns).
_SUMS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


@dataclass(frozen=True)
class SubpixelKernel:
    """The convolution that makes the output pixels (2y + i, 2x + j)."""

    i: int
    j: int
    weight: NDArray[np.float32]  # [out, in, 2, 2]

    @property
    def pads(self) -> list[int]:
        """ONNX order: top, left, bottom, right."""
        return [1 - self.i, 1 - self.j, self.i, self.j]


def subpixel_kernels(weight: NDArray[np.float32]) -> Iterator[SubpixelKernel]:
    """The four kernels of a 3x3 kernel [out, in, 3, 3], in the order (i, j) = 00, 01, 10, 11."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"expected a kernel [out, in, 3, 3], found {list(weight.shape)}")
    for i in (0, 1):
        for j in (0, 1):
            yield SubpixelKernel(i, j, np.einsum("ah,oihw,bw->oiab", _SUMS[i], weight, _SUMS[j]))
