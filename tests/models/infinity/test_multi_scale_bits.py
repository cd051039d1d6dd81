from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.models.infinity.bsq_vae import bits_of_features
from nextscale.models.infinity.multi_scale_bits import (
    accumulate,
    codes_of_bits,
    contribution,
    latent_stage_size,
    next_input,
)
from nextscale.models.infinity.schedules import Size, first_stages
from tests.goldens.infinity_parity import CASES, Case, random_inputs, some_tokens
from tests.goldens.parity import GOLDENS

ONE_OF_A_SIZE = [case for case in CASES if case.name in ("infinity", "infinity_rope_0", "infinity_patchify")]
SIZES = [
    pytest.param(first_stages(stages, ratio, patchify=patchify), id=f"{stages}-{ratio[0]}:{ratio[1]}-{patchify}")
    for stages, ratio, patchify in [(5, (1, 1), False), (4, (4, 3), False), (4, (2, 5), True), (1, (1, 1), True)]
]


def random_bits(size: Size, bits: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 2, (2, tokens, bits), generator=generator) for tokens in size.stage_tokens]


def bilinear(length: int, onto: int) -> NDArray[np.float64]:
    """The matrix [onto, length] of bilinear resizing: half-pixel centres, edges repeated, no antialiasing."""
    matrix = np.zeros((onto, length))
    for i in range(onto):
        place = max((i + 0.5) * length / onto - 0.5, 0)
        lower = min(math.floor(place), length - 1)
        upper = min(lower + 1, length - 1)
        matrix[i, lower] += 1 - (place - lower)
        matrix[i, upper] += place - lower
    return matrix


def resized(maps: NDArray, sides: tuple[int, int]) -> NDArray[np.float64]:
    height, width = maps.shape[2:]
    return np.einsum("yh,bchw,xw->bcyx", bilinear(height, sides[0]), maps, bilinear(width, sides[1]))


@pytest.mark.parametrize("case", ONE_OF_A_SIZE, ids=lambda case: case.name)
def test_encoding_gives_the_official_bits_and_inputs(case: Case) -> None:
    with np.load(GOLDENS / f"{case.name}.npz") as official:
        bits = bits_of_features(random_inputs(case).latent, case.size.stage_sizes, case.size.patch)
        packed = np.packbits(bits.numpy().astype(bool), axis=-1)
        np.testing.assert_array_equal(packed, official["encoded_bits"])
        _, inputs = accumulate(bits.split(case.size.stage_tokens, dim=1), case.size)
        # Sums of up to 7 codes of 1/sqrt(2) at most.
        np.testing.assert_allclose(some_tokens(inputs), official["encoded_inputs"], rtol=0, atol=7 * 2**-22)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_bilinear(size: Size) -> None:
    # Float32 places a pixel within 8 ulp, between values that differ by up to 8.
    tolerance = 8 * 8 * 2**-23
    bits = random_bits(size, 8, seed=0)
    f_hat = torch.randn(2, 8 // size.patch**2, *size.latent_size, generator=torch.Generator().manual_seed(1))
    for si, of_stage in enumerate(bits):
        codes = codes_of_bits(of_stage, size, si)
        assert tuple(codes.shape[2:]) == latent_stage_size(size, si)
        expected = resized(codes.double().numpy(), size.latent_size)
        np.testing.assert_allclose(contribution(of_stage, size, si), expected, rtol=0, atol=tolerance)
        patch, (height, width) = size.patch, size.stage_sizes[si]
        maps = resized(f_hat.double().numpy(), latent_stage_size(size, si))
        maps = maps.reshape(2, -1, height, patch, width, patch).transpose(0, 2, 4, 1, 3, 5)
        maps = maps.reshape(2, height * width, 8)
        np.testing.assert_allclose(next_input(f_hat, size, si), maps, rtol=0, atol=tolerance)


def test_a_bit_stands_for_its_sign_over_the_root_of_the_channels() -> None:
    size = first_stages(2, (1, 1))
    codes = codes_of_bits(torch.tensor([[[1, 0, 0, 1]] * 4]), size, 1)
    assert codes.shape == (1, 4, 2, 2)
    assert codes[0, :, 0, 1].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_a_token_of_a_patch_has_the_bits_of_four_latents() -> None:
    size = first_stages(1, (1, 1), patchify=True)
    bits = torch.tensor([[[1, 0, 0, 0, 1, 1, 1, 0]]])
    codes = codes_of_bits(bits, size, 0) * math.sqrt(2)
    torch.testing.assert_close(codes, torch.tensor([[[[1.0, -1], [-1, -1]], [[1, 1], [1, -1]]]]))


@pytest.mark.parametrize("size", SIZES)
def test_accumulation_is_the_sum_of_the_stages(size: Size) -> None:
    bits = random_bits(size, 8, seed=2)
    f_hat, inputs = accumulate(bits, size)
    parts = [contribution(of_stage, size, si) for si, of_stage in enumerate(bits)]
    torch.testing.assert_close(f_hat, torch.stack(parts).sum(0), rtol=0, atol=1e-6)
    assert inputs.shape == (2, size.num_tokens - 1, 8)
    for si in range(1, size.num_stages):
        before = torch.stack(parts[:si]).sum(0)
        begin = size.stage_begins[si] - 1
        found = inputs[:, begin : begin + size.stage_tokens[si]]
        torch.testing.assert_close(found, next_input(before, size, si), rtol=0, atol=1e-6)


def test_another_number_of_tokens_is_refused() -> None:
    size = first_stages(3, (3, 4))
    with pytest.raises(ValueError, match="stage 2 has 12 tokens, found bits of 4"):
        codes_of_bits(torch.zeros(1, 4, 8), size, 2)
