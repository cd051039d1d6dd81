"""A transformer with its VAE and with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_infinity import CONFIG, SIZE, tiny_infinity

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from nextscale.models.infinity.pair import bits_per_bit, load_pair, twins_warning
from nextscale.models.infinity.random_vae import random_bsq_vae
from tests.goldens.infinity_parity import in_chunks, random_state

VAE = BSQVAEConfig(CONFIG.token_bits, 32, (1, 1, 1, 1, 1), num_res_blocks=1)


@pytest.fixture(scope="module")
def vae() -> BSQVAE:
    return random_bsq_vae(VAE)


def saved(save: Callable[..., Path], vae: BSQVAEConfig) -> tuple[Path, Path]:
    """The tiny transformer and a VAE, as the official code saves them."""
    state = random_bsq_vae(vae).state_dict()
    return save(in_chunks(random_state(CONFIG), 2), "2b.pth"), save({"vae": state}, "vae.pth")


def test_a_pair_is_loaded(save: Callable[..., Path], vae: BSQVAE) -> None:
    found, found_vae = load_pair(*saved(save, VAE))
    assert (found.config, found_vae.config) == (CONFIG, VAE)
    assert torch.equal(found_vae.decoder.conv_in.weight, vae.decoder.conv_in.weight)


def test_a_vae_of_other_tokens_is_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"vae.pth has 3 latent channels, the transformer's tokens have 8 bits"):
        load_pair(*saved(save, replace(VAE, latent_channels=3)))


def test_patches_on_one_side_alone_are_refused(save: Callable[..., Path]) -> None:
    of_patches = replace(VAE, latent_channels=2, patch=2)
    with pytest.raises(CheckpointError, match=r"tokens of 8 bits are patches of 2 x 2; .*2b.pth was .* of 1 x 1"):
        load_pair(*saved(save, of_patches))
    infinity, vae = load_pair(*saved(save, of_patches), patchify=True)
    assert infinity.config.patch == vae.config.patch == 2


def test_a_figure_of_known_log_odds(vae: BSQVAE) -> None:
    """A head that always says the same of bit j, whatever it reads."""
    infinity = tiny_infinity()
    odds = torch.linspace(-2, 3, CONFIG.token_bits)
    infinity.head.weight = torch.nn.Parameter(torch.zeros_like(infinity.head.weight), requires_grad=False)
    infinity.head.bias = torch.nn.Parameter(odds, requires_grad=False)
    images = torch.rand(2, 3, *SIZE.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    signs = 2 * vae.encode(images, SIZE.stage_sizes).numpy() - 1
    expected = np.log2(1 + np.exp(-signs * odds.numpy())).mean()
    assert bits_per_bit(infinity, vae, images, SIZE) == pytest.approx(expected, rel=1e-5)


def test_who_knows_the_bits_is_less_surprised_than_a_coin(vae: BSQVAE) -> None:
    infinity = tiny_infinity()
    images = torch.rand(1, 3, *SIZE.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ones = vae.encode(images, SIZE.stage_sizes).double().mean((0, 1)).clamp(0.01, 0.99)
    infinity.head.weight = torch.nn.Parameter(torch.zeros_like(infinity.head.weight), requires_grad=False)
    for sign, below in ((1, True), (-1, False)):
        infinity.head.bias = torch.nn.Parameter(sign * ones.logit().float(), requires_grad=False)
        assert (bits_per_bit(infinity, vae, images, SIZE) < 1) is below


@pytest.mark.parametrize(("bits", "patch", "warns"), [(32, 1, True), (8, 2, True), (24, 1, False), (14, 2, False)])
def test_only_vaes_of_32_bits_have_a_twin(bits: int, patch: int, warns: bool) -> None:
    warning = twins_warning("2b.pth", "vae.pth", replace(VAE, latent_channels=bits, patch=patch))
    assert (warning is not None) is warns
    if warning is not None:
        assert "\n" not in warning
        assert all(name in warning for name in ("2b.pth", "vae.pth", "infinity_vae_d32reg.pth", "infinity_vae_d32.pth"))
