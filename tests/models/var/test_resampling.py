from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nextscale.models.var.resampling import downsampling_matrix, upsampling_matrix

# Rows have at most 16 weights (bicubic) or a few dozen (area), all below 2: float32 sums of so few terms.
ATOL = 2e-6
PATCH_NUMS = pytest.mark.parametrize("patch_nums", [(1, 2, 3, 4), (2, 3, 5, 8), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)])


def upsampling(patch_nums: tuple[int, ...]) -> list[tuple[int, torch.Tensor]]:
    """(pn, rows) of each stage."""
    rows = upsampling_matrix(patch_nums).split([pn * pn for pn in patch_nums])
    return list(zip(patch_nums, rows, strict=True))


def downsampling(patch_nums: tuple[int, ...]) -> list[tuple[int, torch.Tensor]]:
    """(pn, rows) of each stage but the first."""
    rows = downsampling_matrix(patch_nums).split([pn * pn for pn in patch_nums[1:]])
    return list(zip(patch_nums[1:], rows, strict=True))


@PATCH_NUMS
def test_upsampling_is_bicubic_interpolation(patch_nums: tuple[int, ...]) -> None:
    generator, side = torch.Generator().manual_seed(0), patch_nums[-1]
    for pn, rows in upsampling(patch_nums):
        h = torch.randn(2, 3, pn, pn, generator=generator)
        found = (h.flatten(2) @ rows).view(2, 3, side, side)
        torch.testing.assert_close(found, F.interpolate(h, size=(side, side), mode="bicubic"), rtol=0, atol=ATOL)


@PATCH_NUMS
def test_the_last_stage_is_taken_as_it_is(patch_nums: tuple[int, ...]) -> None:
    for _, rows in (upsampling(patch_nums)[-1], downsampling(patch_nums)[-1]):
        assert torch.equal(rows, torch.eye(patch_nums[-1] ** 2))


@PATCH_NUMS
def test_downsampling_is_area_interpolation(patch_nums: tuple[int, ...]) -> None:
    generator, side = torch.Generator().manual_seed(0), patch_nums[-1]
    f_hat = torch.randn(2, 3, side, side, generator=generator)
    for pn, rows in downsampling(patch_nums):
        found = rows @ f_hat.flatten(2).mT
        expected = F.interpolate(f_hat, size=(pn, pn), mode="area").flatten(2).mT
        torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


@PATCH_NUMS
def test_a_constant_map_stays_constant(patch_nums: tuple[int, ...]) -> None:
    side = patch_nums[-1]
    for pn, rows in upsampling(patch_nums):
        torch.testing.assert_close(torch.ones(pn * pn) @ rows, torch.ones(side**2), rtol=0, atol=ATOL)
    for pn, rows in downsampling(patch_nums):
        torch.testing.assert_close(rows.sum(1), torch.ones(pn * pn), rtol=0, atol=ATOL)
