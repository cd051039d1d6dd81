from __future__ import annotations

import pytest
import torch

from nextscale.models.infinity.presets import PRESETS, get_preset
from nextscale.models.infinity.schedules import STRIDE
from nextscale.models.infinity.transformer import Infinity
from nextscale.runtime._errors import NextscaleError

# Of the official models without their second row of a bit in the head, billions: names say the rest, or the paper.
BILLIONS = {"infinity-125m": 0.125, "infinity-1b": 0.94, "infinity-2b": 2.2, "infinity-8b": 8.4, "infinity-20b": 19.95}
HIDDEN = {
    "infinity-125m": 3072,
    "infinity-layer16": 4608,
    "infinity-1b": 6144,
    "infinity-layer32": 8192,
    "infinity-2b": 8192,
    "infinity-layer40": 10752,
    "infinity-layer48": 13312,
    "infinity-8b": 14336,
    "infinity-20b": 18432,
}


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_presets_have_the_size_that_their_names_say(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Infinity(get_preset(name).config)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert parameters == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_official_widths(name: str) -> None:
    preset = get_preset(name)
    config = preset.config
    assert preset.name == name
    assert config.hidden_dim == HIDDEN[name]
    assert config.head_dim in (96, 104, 112, 120, 128)
    assert config.pool_heads == (32 if name == "infinity-20b" else 16)
    assert (config.token_bits, config.latent_channels) == ((56, 14) if name == "infinity-8b" else (32, 32))
    vae = preset.vae
    assert (vae.token_bits, vae.latent_channels, vae.patch) == (config.token_bits, config.latent_channels, config.patch)
    assert vae.downsample * vae.patch == STRIDE


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(NextscaleError, match=r"no preset 'Infinity_2B': did you mean infinity-2b\?"):
        get_preset("Infinity_2B")
