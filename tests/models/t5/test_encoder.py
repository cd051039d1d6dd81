"""The encoder against transformers' T5EncoderModel (tests/goldens/make_text_goldens.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextscale.models.t5.encoder import T5Config, T5Encoder, position_buckets
from tests.goldens.text_parity import CONFIG, DISTANCES, FEATURES, LENGTHS, condensed, small_encoder, token_ids

# Two orders of summing in float32, over sums of some hundred terms of about 1; the features are of about 1, too.
TOLERANCE = 2e-5


@pytest.mark.parametrize("length", LENGTHS)
def test_features_are_those_of_transformers(length: int) -> None:
    found = small_encoder()(torch.from_numpy(token_ids(length)))
    with np.load(FEATURES) as goldens:
        expected = goldens[f"features.{length}"]
    assert found.shape == (2, length, CONFIG.embed_dim)
    assert expected.std() > 0.5
    np.testing.assert_allclose(condensed(found.numpy()), expected, rtol=0, atol=TOLERANCE)


def test_buckets_are_those_of_transformers() -> None:
    with np.load(FEATURES) as goldens:
        expected = goldens["buckets"]
    np.testing.assert_array_equal(position_buckets(torch.from_numpy(DISTANCES), CONFIG).numpy(), expected)
    assert len(np.unique(expected)) == CONFIG.num_buckets - 1  # 16 is distance 0 behind the query, which there is not


@pytest.mark.parametrize("options", [{"num_buckets": 30}, {"num_buckets": 0}, {"max_distance": 8}], ids=str)
def test_buckets_that_leave_no_room_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected num_buckets in fours and max_distance above"):
        T5Config(**options)


def test_texts_of_a_batch_do_not_see_each_other() -> None:
    model, ids = small_encoder(), torch.from_numpy(token_ids(9))
    alone = torch.cat([model(row[None]) for row in ids])
    torch.testing.assert_close(model(ids), alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """As if the weights had been rounded and made float32 again, bit for bit."""
    half, ids = small_encoder().to(dtype), torch.from_numpy(token_ids(9))
    rounded = T5Encoder(CONFIG)
    rounded.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    found = half(ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rounded.requires_grad_(False)(ids), rtol=0, atol=0)


def test_texts_of_unequal_lengths_do_not_see_their_padding() -> None:
    model, ids = small_encoder(), torch.from_numpy(token_ids(9))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    found = model(ids, mask)
    torch.testing.assert_close(found[0], model(ids[:1])[0], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found[1, :6], model(ids[1:, :6])[0], rtol=0, atol=TOLERANCE)
    assert found.isfinite().all()
