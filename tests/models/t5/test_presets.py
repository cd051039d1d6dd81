from __future__ import annotations

import pytest
import torch

from nextscale.models.t5.encoder import T5Config, T5Encoder
from nextscale.models.t5.presets import PRESETS, get_preset
from nextscale.runtime._errors import NextscaleError

# Parameters of the whole models, millions: those of Flan-T5's files, and of the paper on ByT5 (table 1).
MILLIONS = {
    "flan-t5-small": 77.0,
    "flan-t5-base": 247.6,
    "flan-t5-large": 783.2,
    "flan-t5-xl": 2850,
    "flan-t5-xxl": 11135,
    "byt5-small": 300,
    "byt5-base": 582,
    "byt5-large": 1230,
    "byt5-xl": 3740,
    "byt5-xxl": 12900,
}


def decoder_parameters(config: T5Config, depth: int) -> int:
    """Of blocks with attention to the encoder besides, and of the head."""
    attention, width = 4 * config.embed_dim * config.inner_dim, config.embed_dim
    block = 2 * attention + 3 * width * config.hidden_dim + 3 * width
    return depth * block + config.num_buckets * config.num_heads + width + config.vocab_size * width


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_size_of_the_official_releases(name: str) -> None:
    config = get_preset(name)
    with torch.device("meta"):
        encoder = sum(parameter.numel() for parameter in T5Encoder(config).parameters())
    decoder = decoder_parameters(config, config.depth // 3 if name.startswith("byt5") else config.depth)
    assert (encoder + decoder) / 1e6 == pytest.approx(MILLIONS[name], rel=0.005)


@pytest.mark.parametrize(("typed", "meant"), [("Flan_T5_XL", "flan-t5-xl"), ("byt5smal", "byt5-small")])
def test_an_unknown_preset_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(NextscaleError, match=f"no text encoder '{typed}': did you mean {meant}\\?"):
        get_preset(typed)


def test_a_name_like_no_preset_lists_them_all() -> None:
    with pytest.raises(NextscaleError, match=r"no text encoder 'clip': The presets are flan-t5-small, .*, byt5-xxl"):
        get_preset("clip")
