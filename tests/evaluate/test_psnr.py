import math

import numpy as np
import pytest

from nextscale.evaluate.psnr import psnr


def test_by_hand() -> None:
    """One of 12 values is off by 51, a fifth of the peak: 10 log10(25 * 12)."""
    expected = np.full((1, 2, 2, 3), 204, np.uint8)
    found = expected.copy()
    found[0, 1, 1, 2] = 255
    assert psnr(expected, found) == pytest.approx(10 * math.log10(300))


def test_differences_below_zero_do_not_wrap_around() -> None:
    dark, bright = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr(dark, bright) == psnr(bright, dark) == 0


def test_equal_pictures_have_no_noise() -> None:
    assert psnr(np.ones((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)) == math.inf


def test_pictures_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\): expected \(2, 2, 3\)"):
        psnr(np.ones((2, 2, 3), np.uint8), np.ones((1, 2, 3), np.uint8))
