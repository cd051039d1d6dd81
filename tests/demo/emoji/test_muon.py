from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nextscale.demo.emoji.muon import ITERATIONS, Muon, orthogonal

SHAPES = ((12, 8), (8, 12), (8, 8), (12, 8), (16, 8))
EPS = 2**-8  # of bfloat16


def matrices(seed: int) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=numbers) for shape in SHAPES]


def test_steps_are_those_of_one_matrix_after_another() -> None:
    """Three steps of `torch.optim.Muon`, with momentum and decay.

    A product of bfloat16 may round otherwise among others: each of an iteration's three by EPS of values of at most
    1.2, which later iterations multiply by at most 2.5 where singular values are small, and by less than 1 elsewhere.
    """
    params, lr, decay = [nn.Parameter(m) for m in matrices(0)], 0.1, 0.3
    theirs = copy.deepcopy(params)
    found = Muon(params, lr, decay)
    expected = torch.optim.Muon(theirs, lr, decay, adjust_lr_fn="match_rms_adamw")
    for seed in range(1, 4):
        for ours, other, gradient in zip(params, theirs, matrices(seed), strict=True):
            ours.grad, other.grad = gradient.clone(), gradient.clone()
        found.step()
        expected.step()
        for ours, other in zip(params, theirs, strict=True):
            atol = seed * 0.2 * lr * max(ours.shape) ** 0.5 * 3 * ITERATIONS * EPS
            torch.testing.assert_close(ours, other, rtol=0, atol=atol)
    assert (params[0] - matrices(0)[0]).abs().max() > 0.2


@pytest.mark.parametrize("shape", [(6, 32, 16), (6, 16, 32), (6, 16, 16)])
def test_singular_values_are_nearly_equal(shape: tuple[int, ...]) -> None:
    """Those that are no smaller than a hundredth of the largest; the rest are still growing."""
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)[:, None, None]
    before, after = (torch.linalg.svdvals(m.float()) for m in (given, orthogonal(given)))
    grown = before > 0.01 * before.norm(dim=1, keepdim=True)
    assert grown.float().mean() > 0.9
    assert 0.6 < after[grown].min() < after.max() < 1.3
