from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.stage_resampling import StageResampling
from nextscale.models.var.multi_scale_quantizer import MultiScaleQuantizer

V, CVAE, BATCH = 32, 4, 3
# float32 sums of up to H*W = 64 (area) or 9 Cvae = 36 (phi) terms of order 1, over four stages: 64 * 2^-23 a stage,
# and a few times that after the four.
ATOL = 3e-5


@pytest.fixture(params=[(1, 2, 3, 4), (2, 3, 5, 8)], ids=str)
def resampling(request: pytest.FixtureRequest) -> StageResampling:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StageResampling(MultiScaleQuantizer(V, CVAE, request.param))


def latent(resampling: StageResampling) -> Tensor:
    side = resampling.quantizer.patch_nums[-1]
    return torch.randn(BATCH, CVAE, side, side, generator=torch.Generator().manual_seed(1))


def tokens(resampling: StageResampling) -> Tensor:
    return torch.randint(V, (BATCH, sum(resampling.sizes)), generator=torch.Generator().manual_seed(2))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_upsampling_is_bicubic_interpolation(resampling: StageResampling) -> None:
    patch_nums = resampling.quantizer.patch_nums
    side = patch_nums[-1]
    for pn, rows in zip(patch_nums, resampling.upsampling.split(resampling.sizes), strict=True):
        h = F.interpolate(latent(resampling), size=(pn, pn))
        found = (h.flatten(2) @ rows).unflatten(2, (side, side))
        assert_close(found, F.interpolate(h, size=(side, side), mode="bicubic"))


def test_downsampling_is_area_interpolation_of_the_first_stage_too(resampling: StageResampling) -> None:
    f = latent(resampling)
    for si, pn in enumerate(resampling.quantizer.patch_nums):
        expected = F.interpolate(f, size=(pn, pn), mode="area").flatten(2).mT
        assert_close(resampling.downsample(f, si), expected)


@torch.no_grad()
def test_contribution_is_the_quantizers(resampling: StageResampling) -> None:
    for si, token_map in enumerate(tokens(resampling).split(resampling.sizes, dim=1)):
        assert_close(resampling.contribution(token_map, si), resampling.quantizer.contribution(token_map, si))


@torch.no_grad()
def test_teacher_forced_inputs_are_the_quantizers(resampling: StageResampling) -> None:
    _, expected = resampling.quantizer.accumulate(tokens(resampling).split(resampling.sizes, dim=1))
    assert_close(resampling.teacher_forced_inputs(tokens(resampling)), expected)


def test_quantize_chooses_the_quantizers_tokens(resampling: StageResampling) -> None:
    f = latent(resampling)
    found = resampling.quantize(f)
    with torch.no_grad():
        expected = resampling.quantizer.tokenize(f)
        f_hat, _ = resampling.quantizer.accumulate(expected)
    assert torch.equal(found.hits, torch.cat(expected, dim=1).flatten().bincount(minlength=V).float())
    assert_close(found.f_hat, f_hat)
    nearest = resampling.quantizer.nearest(found.residuals)
    assert torch.equal(nearest, torch.cat([token_map.flatten() for token_map in expected]))


def test_gradients_pass_straight_through_and_the_loss_reaches_features_codebook_and_phi(
    resampling: StageResampling,
) -> None:
    f = latent(resampling).requires_grad_()
    quantized = resampling.quantize(f)
    (gradient,) = torch.autograd.grad(quantized.f_hat.sum(), f, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(f))
    quantized.loss.backward()
    assert f.grad is not None
    for name, parameter in resampling.quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
