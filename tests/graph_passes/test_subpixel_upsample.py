"""Upsampling and a 3x3 convolution against the four small convolutions, in float64 with NumPy."""

import numpy as np
import pytest

from nextscale.graph_passes._subpixel_upsample import subpixel_kernels


def convolve(x, weight, pads):
    """x [in, H, W], weight [out, in, kh, kw], pads top, left, bottom, right -> [out, H', W']."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.einsum("ihwab,oiab->ohw", windows, weight)


@pytest.mark.parametrize("seed", range(5))
def test_four_small_convolutions_equal_upsampling_and_convolution(seed):
    rng = np.random.default_rng(seed)
    height, width, channels, out = rng.integers(1, 7, 4)
    x = rng.standard_normal((channels, height, width))
    weight = rng.standard_normal((out, channels, 3, 3))
    expected = convolve(x.repeat(2, axis=1).repeat(2, axis=2), weight, [1] * 4)

    found = np.full_like(expected, np.nan)
    for kernel in subpixel_kernels(weight):
        found[:, kernel.i :: 2, kernel.j :: 2] = convolve(x, kernel.weight, kernel.pads)

    # Sums of 9 * 6 products of float64 in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=f"seed {seed}")


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match=r"expected a kernel \[out, in, 3, 3\], found \[2, 2, 1, 1\]"):
        list(subpixel_kernels(np.zeros((2, 2, 1, 1), np.float32)))
