from __future__ import annotations

import torch

from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.layers import MAX_EXPONENT, channel_factors, wide_layers
from nextscale.models.t5.random_weights import random_t5


def test_the_wide_layers_are_those_behind_the_gates() -> None:
    model = random_t5(T5Config(20, 16, 3, 2, 8, 24))
    found = wide_layers(model.config)
    assert [name for name, _ in model.named_modules() if name.endswith(".wo")] == found
    assert len(found) == 3


def test_factors_make_columns_about_equally_large() -> None:
    """Within a factor of 2^0.5 of the median to either side, whatever they were."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 50, generator=generator) * torch.exp2(8 * torch.rand(50, generator=generator) - 4)
    found = (weight * channel_factors(weight)).abs().amax(0)
    middle = weight.abs().amax(0).median()
    assert weight.abs().amax(0).max() > 8 * middle
    assert float(found.max()) <= float(middle) * 2**0.5 * (1 + 1e-6)
    assert float(found.min()) >= float(middle) / 2**0.5 * (1 - 1e-6)


def test_factors_are_powers_of_two_and_lose_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(30, 50, generator=generator) * torch.logspace(-3, 3, 50)).half()
    factors = channel_factors(weight)
    assert factors.dtype == torch.float32
    mantissa, _ = torch.frexp(factors)
    assert set(mantissa.tolist()) == {0.5}
    assert torch.equal(weight.float() * factors / factors, weight.float())


def test_columns_of_nothing_stay_and_tiny_ones_are_bounded() -> None:
    weight = torch.ones(4, 5)
    weight[:, 1], weight[:, 2] = 0, 1e-30
    assert channel_factors(weight).tolist() == [1, 1, 2**MAX_EXPONENT, 1, 1]
    assert channel_factors(torch.zeros(4, 3)).tolist() == [1, 1, 1]
