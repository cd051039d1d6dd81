"""Against the functions of `models.infinity`, which are compared with the official code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextscale.demo.emoji.bit_stages import BitStages, bit_entropy
from nextscale.models.infinity.bsq_vae import bits_of_features
from nextscale.models.infinity.multi_scale_bits import accumulate
from nextscale.models.infinity.schedules import Size, first_stages

BATCH, CHANNELS = 3, 4
SIZES = [first_stages(5, (1, 1)), first_stages(4, (4, 3))]
# float32 sums over at most 64 positions of order 1, at each of five stages: 5 * 64 * 2^-24.
ATOL = 2e-5


def features(size: Size) -> Tensor:
    return torch.randn(BATCH, CHANNELS, *size.latent_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.ratio)
def test_bits_inputs_and_latent_are_the_models(size: Size) -> None:
    found = BitStages(size)(features(size))
    bits = bits_of_features(features(size), size.stage_sizes)
    assert found.residuals.abs().min() > ATOL, "a sign may be either; choose another seed"
    torch.testing.assert_close(found.bits, bits.float(), rtol=0, atol=0)
    f_hat, inputs = accumulate(bits.split(size.stage_tokens, dim=1), size)
    torch.testing.assert_close(found.f_hat, f_hat, rtol=0, atol=ATOL)
    torch.testing.assert_close(found.inputs, inputs, rtol=0, atol=ATOL)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.ratio)
def test_flipped_bits_are_seen_by_later_stages_which_correct_them(size: Size) -> None:
    generator = torch.Generator().manual_seed(2)
    flips = torch.rand(BATCH, size.num_tokens, CHANNELS, generator=generator) < 0.2
    found = BitStages(size)(features(size), flips)
    wrong = found.bits.bool() ^ flips
    f_hat, inputs = accumulate(wrong.long().split(size.stage_tokens, dim=1), size)
    torch.testing.assert_close(found.f_hat, f_hat, rtol=0, atol=ATOL)
    torch.testing.assert_close(found.inputs, inputs, rtol=0, atol=ATOL)
    # The last stage's bits are right about what the wrong ones before it left over.
    last = size.stage_tokens[-1]
    before = wrong.clone()
    before[:, -last:] = False
    kept, _ = accumulate(before.long().split(size.stage_tokens, dim=1), size)
    code = CHANNELS**-0.5
    residual = (features(size) - (kept + code)).flatten(2).mT
    assert torch.equal(found.bits[:, -last:].bool(), residual > 0)


def test_gradients_reach_features_through_residuals_alone() -> None:
    given = features(SIZES[0]).requires_grad_()
    found = BitStages(SIZES[0])(given)
    assert not found.f_hat.requires_grad
    assert not found.inputs.requires_grad
    (gradient,) = torch.autograd.grad(found.residuals[:, -1].sum(), given)
    expected = torch.zeros_like(given)
    expected[:, :, -1, -1] = 1
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("residuals", "expected"),
    [
        (torch.tensor([-9.0, 9.0]), -math.log(2)),  # decided, and of both kinds
        (torch.tensor([9.0, 9.0]), 0.0),  # decided, all alike
        (torch.tensor([0.0, 0.0]), 0.0),  # undecided
    ],
)
def test_entropy_of_bits(residuals: Tensor, expected: float) -> None:
    """Probabilities are clipped to 1e-4, whose entropy is 0.0010."""
    found = bit_entropy(residuals[:, None, None].expand(2, 3, 4))
    assert float(found) == pytest.approx(expected, abs=0.0011)
