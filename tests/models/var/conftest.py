"""The first of the golden cases, as models and as what a checkpoint of them holds."""

from __future__ import annotations

import pytest
from torch import Tensor

from nextscale.models.var.transformer import VAR
from nextscale.models.var.vqvae import VQVAE
from tests.goldens.parity import CASES, models_of


@pytest.fixture(scope="module")
def models() -> tuple[VAR, VQVAE]:
    return models_of(CASES[0])


@pytest.fixture
def var_state(models: tuple[VAR, VQVAE]) -> dict[str, Tensor]:
    return dict(models[0].state_dict())


@pytest.fixture
def vqvae_state(models: tuple[VAR, VQVAE]) -> dict[str, Tensor]:
    return dict(models[1].state_dict())
