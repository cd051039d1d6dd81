from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nextscale.models.infinity.schedules import Size, make_size
from nextscale.models.infinity.transformer import Infinity, InfinityConfig
from nextscale.models.transformer_parts import KVCache
from tests.tiny_infinity import CONFIG, SIZE, tiny_infinity


def stage_by_stage(model: Infinity, features: Tensor, text_mask: Tensor, inputs: Tensor, size: Size) -> Tensor:
    """As `Infinity.forward`, with caches."""
    text = model.read_text(features, text_mask)
    caches = [KVCache() for _ in model.blocks]
    found = []
    for si, (begin, length) in enumerate(zip(size.stage_begins, size.stage_tokens, strict=True)):
        x = model.embed(text, inputs[:, begin - 1 : begin - 1 + length] if si else None)
        found.append(model.stage_log_odds(x, text, size, si, caches))
    return torch.cat(found, dim=1)


def random_arguments(seed: int, rows: int = 3, length: int = 5, size: Size = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Features, mask and inputs; the texts have 1 to `length` tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    features = torch.randn(rows, length, CONFIG.text_channels, generator=generator)
    inputs = torch.randn(rows, size.num_tokens - 1, CONFIG.token_bits, generator=generator)
    return features, (torch.arange(length) < lengths).long(), inputs


@pytest.mark.parametrize("level_blocks", [(0,), (0, 1)])
@pytest.mark.parametrize("rope_mode", [0, 1, 2])
def test_all_stages_at_once_agree_with_one_after_the_other(level_blocks: tuple[int, ...], rope_mode: int) -> None:
    model = tiny_infinity(replace(CONFIG, level_blocks=level_blocks, rope_mode=rope_mode))
    arguments = random_arguments(seed=rope_mode)
    at_once = model(*arguments, SIZE)
    assert at_once.shape == (3, SIZE.num_tokens, CONFIG.token_bits)
    # The same sums in another order, over rows of 64 numbers at most, in two blocks.
    torch.testing.assert_close(stage_by_stage(model, *arguments, SIZE), at_once, rtol=1e-5, atol=2e-5)


def test_rows_do_not_see_each_other_nor_what_is_behind_their_texts_end() -> None:
    model = tiny_infinity()
    features, text_mask, inputs = random_arguments(seed=1)
    together = model(features, text_mask, inputs, SIZE)
    for row, length in enumerate(text_mask.sum(1).tolist()):
        alone = model(features[row, None, :length], text_mask[row, None, :length], inputs[row, None], SIZE)
        torch.testing.assert_close(together[row, None], alone, rtol=1e-5, atol=2e-5)


def test_a_stage_sees_no_later_one() -> None:
    model = tiny_infinity()
    features, text_mask, inputs = random_arguments(seed=2)
    last = SIZE.stage_begins[-1]
    changed = inputs.clone()
    changed[:, last - 1 :] += 1
    before, after = (model(features, text_mask, given, SIZE) for given in (inputs, changed))
    torch.testing.assert_close(before[:, :last], after[:, :last], rtol=0, atol=0)
    assert (before[:, last:] != after[:, last:]).any(-1).all()


def test_one_model_makes_all_sizes() -> None:
    model = tiny_infinity()
    for size in (make_size("0.06M", (1, 3)), make_size("0.06M", (5, 2))):
        features, text_mask, inputs = random_arguments(seed=3, rows=1, size=size)
        assert model(features, text_mask, inputs, size).shape == (1, size.num_tokens, CONFIG.token_bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "embed_dim 32 is not a multiple of num_heads 5"),
        ({"pool_heads": 0}, "embed_dim 32 is not a multiple of pool_heads 0"),
        ({"num_heads": 16}, "the width of a head must be a multiple of 4 for RoPE, found 2"),
        ({"token_bits": 6, "patchify": True}, "a token of patches has a multiple of 4 bits, found 6"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)


def test_patches_have_four_latents() -> None:
    assert (CONFIG.patch, CONFIG.latent_channels) == (1, 8)
    patchified = replace(CONFIG, patchify=True)
    assert (patchified.patch, patchified.latent_channels) == (2, 2)
    assert InfinityConfig().head_dim == 128
