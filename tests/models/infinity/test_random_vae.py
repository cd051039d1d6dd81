from __future__ import annotations

import torch

from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.random_vae import random_bsq_vae

CONFIG = BSQVAEConfig(16, 32, (1, 2, 4, 4, 4))
STAGES = ((1, 1), (2, 2), (4, 4))


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (random_bsq_vae(CONFIG, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["decoder.conv_in.weight"], other["decoder.conv_in.weight"])


def test_activations_bits_and_pixels_stay_in_a_sane_range() -> None:
    vae, generator = random_bsq_vae(CONFIG), torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    features = vae.features(pictures) * 4  # in codes, 1/sqrt(16)
    assert 0.3 < features.std() < 3
    bits = vae.encode(pictures, STAGES)
    assert 0.3 < bits.float().mean() < 0.7
    f_hat = (2 * torch.randint(0, 2, (2, 16, 4, 4), generator=generator) - 1) / 4
    decoded = vae.decoder(f_hat)
    assert 0.2 < decoded.std() < 1.5
