"""Operations, counted by hand for released sizes and by torch for a small one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from infinity_bundle import SIZES, tiny_vae, write_infinity_bundle
from model_infos import VAR_D16, facts_of
from tiny_infinity import CONFIG, tiny_infinity
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nextscale.models.infinity import reference
from nextscale.models.infinity.layers import HEAD_ADA_LIN, linear_shapes, stage_facts
from nextscale.models.infinity.presets import get_preset
from nextscale.models.infinity.schedules import make_size
from nextscale.models.operations import (
    attention_operations,
    convolution_operations,
    facts_of_bundle,
    linear_operations,
)
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError


def test_linear_operations_of_d16() -> None:
    """0.55 T: 12 C^2 in each block for 2 x 680 tokens, and C V for 680."""
    operations = linear_operations(facts_of(VAR_D16))
    blocks = sum(count for name, count in operations.items() if ".attn." in name or ".ffn." in name)
    assert blocks == 2 * 12 * 1024**2 * 16 * 2 * 680
    assert operations["head"] == 2 * 1024 * 4096 * 680
    assert sum(operations.values()) == pytest.approx(0.554e12, rel=1e-3)


def test_linear_operations_of_infinity_2b_at_256_pixels() -> None:
    """3.99 T: 14 C^2 in each block for 2 x 521 tokens; 2 C^2 for 2 x 64 of text, and before the blocks, too."""
    config, size = get_preset("infinity-2b").config, make_size("0.06M", (1, 1))
    operations = linear_operations(stage_facts(linear_shapes(config), [size], text_tokens=64))
    of_both_rows = 2 * 2 * 2048**2 * (14 * 32 * 521 + 2 * 33 * 64 + 8)
    assert sum(operations.values()) == of_both_rows + 2 * 2048 * 32 * (521 + 520)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_an_infinity_is_counted_as_torch_counts_it(tmp_path: Path, index: int) -> None:
    """All matrix products of one picture, float32, with guidance and texts of five tokens."""
    bundle, size, text = Bundle.open(write_infinity_bundle(tmp_path / "it")), SIZES[index], 5
    counter = FlopCounterMode(display=False)
    features = torch.zeros(1, text, CONFIG.text_channels)
    uniforms = torch.zeros(1, size.num_tokens, CONFIG.token_bits)
    with counter, sdpa_kernel(SDPBackend.MATH):
        reference.generate(tiny_infinity(), size, features, uniforms)
    operations = linear_operations(facts_of_bundle(bundle, index, text))
    # Torch runs the head and word_embed on both rows, and the head's adaLN at each stage. The pool is not listed: keys,
    # values, attention and proj.
    c = CONFIG.embed_dim
    again = operations["head"] + operations["word_embed"] + (size.num_stages - 1) * operations[HEAD_ADA_LIN]
    pool = 2 * 2 * (2 * c * CONFIG.text_channels * text + 2 * c * text + c * c)
    attention = attention_operations(bundle.manifest.of_size(index).model, text)
    assert counter.get_total_flops() == sum(operations.values()) + again + pool + attention


def test_convolutions_are_counted_as_torch_counts_them() -> None:
    """With those of strides, of one pixel, and before upsampling; the counter sees them run, ours is told shapes."""
    vae, counter = tiny_vae(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        vae.decode(torch.zeros(1, CONFIG.latent_channels, 3, 4))
    with torch.device("meta"):
        found = convolution_operations(type(vae)(vae.config).decode, (CONFIG.latent_channels, 3, 4))
    assert found == counter.get_total_flops()


def test_another_family_is_refused(fake_text_bundle: Path) -> None:
    bundle = Bundle.open(fake_text_bundle)
    with pytest.raises(NextscaleError, match="family 'fake-text': expected var or infinity to count layers"):
        facts_of_bundle(bundle)
