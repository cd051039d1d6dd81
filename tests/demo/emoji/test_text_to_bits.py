from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextscale.demo.emoji.configuration import EMOJI, TINY
from nextscale.demo.emoji.scenes import token_ids
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.models.infinity.transformer import Infinity

# Sums of up to 521 terms of order 1 in float32, in another order.
ATOL = 521 * 2**-23


@pytest.fixture(scope="module")
def model() -> TextToBits:
    return TextToBits(TINY, seed=0).requires_grad_(False)


@pytest.fixture(scope="module")
def infinity(model: TextToBits) -> Infinity:
    """The same weights in the model that the toolchain has."""
    found = Infinity(TINY.models.config).requires_grad_(False)
    found.load_state_dict(model.infinity.state_dict())
    return found


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    size, config = TINY.size, TINY.models.config
    return torch.randn(2, size.num_tokens - 1, config.token_bits, generator=torch.Generator().manual_seed(0))


def test_log_odds_are_the_models_without_padding(model: TextToBits, infinity: Infinity, inputs: Tensor) -> None:
    ids = token_ids(["flat cat on navy", "dog"])
    found = model(ids, torch.zeros(2, dtype=torch.bool), inputs)
    for row in range(2):
        alone = ids[row : row + 1, : int((ids[row] > 0).sum())]
        expected = infinity(model.text(alone), torch.ones_like(alone), inputs[row : row + 1], TINY.size)
        torch.testing.assert_close(found[row : row + 1], expected, rtol=0, atol=ATOL)
    assert not torch.allclose(found[0], found[1], atol=100 * ATOL)


def test_a_dropped_caption_is_as_many_rows_of_nothing(model: TextToBits, infinity: Infinity, inputs: Tensor) -> None:
    ids = token_ids(["flat cat on navy", "dog"])
    found = model(ids, torch.tensor([False, True]), inputs)
    length = len("dog") + 1
    nothing, mask = infinity.cfg_uncond[None, :length], torch.ones(1, length)
    torch.testing.assert_close(found[1:], infinity(nothing, mask, inputs[1:], TINY.size), rtol=0, atol=ATOL)


def test_a_seed_gives_the_weights(model: TextToBits) -> None:
    again, other = (TextToBits(TINY, seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(again["infinity.word_embed.weight"], other["infinity.word_embed.weight"])


def test_pictures_have_128_pixels_a_side() -> None:
    for config in (EMOJI, TINY):
        assert config.size.image_size == (128, 128)
        assert config.size.latent_size == config.size.stage_sizes[-1] == (16, 16)


def test_an_untrained_model_expects_nothing(inputs: Tensor) -> None:
    """Log-odds far below 1 cost ln 2 nats a bit, whatever the bits are."""
    found = TextToBits(EMOJI, seed=0).requires_grad_(False)(
        token_ids(["flat cat"]), torch.tensor([False]), inputs[:1].repeat(1, 1, 6)
    )
    assert 0 < found.abs().max() < 0.2
