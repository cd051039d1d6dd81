from __future__ import annotations

import pytest
import torch

from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.random_weights import random_t5


@pytest.mark.parametrize("depth", [2, 12])
def test_features_neither_explode_nor_vanish(depth: int) -> None:
    model = random_t5(T5Config(200, 96, depth, 4, 24, 256), seed=1)
    ids = torch.randint(200, (2, 40), generator=torch.Generator().manual_seed(2))
    x = model.shared(ids)
    bias = model.bias(torch.arange(40)[None, :] - torch.arange(40)[:, None])
    for i in range(depth):
        x = model.block(i)(x, bias)
    assert 0.8 < float(x.std()) < 2
    assert model(ids).isfinite().all()


def test_a_seed_gives_the_same_weights() -> None:
    config = T5Config(50, 32, 1, 2, 16, 48)
    first, again, other = (random_t5(config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
