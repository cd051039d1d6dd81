from __future__ import annotations

import pytest
import torch

from nextscale.models.var.presets import PRESETS, get_preset
from nextscale.models.var.transformer import VAR
from nextscale.runtime._errors import NextscaleError

# The parameters of the official releases, millions (README of the official code).
MILLIONS = {"var-d16": 310, "var-d20": 600, "var-d24": 1000, "var-d30": 2000, "var-d36": 2300}


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_presets_have_the_size_of_the_official_releases(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = VAR(get_preset(name).var)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert parameters == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_belongs_together(name: str) -> None:
    preset = get_preset(name)
    assert preset.name == name
    assert preset.var.head_dim == 64
    assert preset.var.patch_nums == preset.vqvae.patch_nums
    assert preset.vqvae.image_size == (512 if name == "var-d36" else 256)
    assert (preset.var.vocab_size, preset.var.z_channels) == (preset.vqvae.vocab_size, preset.vqvae.z_channels)


@pytest.mark.parametrize(("typed", "meant"), [("var_d16", "var-d16"), ("VAR-D30", "var-d30"), ("d36", "var-d36")])
def test_an_unknown_preset_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(NextscaleError, match=f"did you mean {meant}\\?"):
        get_preset(typed)


def test_a_name_like_no_preset_lists_them_all() -> None:
    with pytest.raises(NextscaleError, match=r"no preset 'resnet'.*var-d16, var-d20, var-d24, var-d30, var-d36"):
        get_preset("resnet")
