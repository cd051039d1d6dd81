from __future__ import annotations

import pytest
import torch

from nextscale.models.var.vqvae import VQVAE
from tests.goldens.parity import CASES, models_of


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return models_of(CASES[0])[1]


def test_a_picture_of_another_size_is_refused(vqvae: VQVAE) -> None:
    with pytest.raises(ValueError, match=r"latent must be 5 x 5, found \[6, 6\]"):
        vqvae.encode(torch.zeros(1, 3, 24, 24))


def test_a_token_map_of_another_stage_is_refused(vqvae: VQVAE) -> None:
    with pytest.raises(ValueError, match="stage 1 has 4 tokens, found a token map of 9"):
        vqvae.quantize.contribution(torch.zeros(1, 9, dtype=torch.int64), 1)


def test_encoding_does_not_change_its_input(vqvae: VQVAE) -> None:
    features = vqvae.features(torch.zeros(1, 3, 20, 20))
    before = features.clone()
    vqvae.quantize.tokenize(features)
    assert torch.equal(features, before)


def test_decoded_pictures_stay_in_range(vqvae: VQVAE) -> None:
    token_maps = [torch.zeros(1, pn * pn, dtype=torch.int64) for pn in vqvae.config.patch_nums]
    pictures = vqvae.decode_tokens(token_maps)
    assert pictures.shape == (1, 3, 20, 20)
    assert pictures.abs().max() <= 1
