from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nextscale.models.infinity.reference import generate, guided_text, sample_bits
from nextscale.models.infinity.schedules import first_stages
from tests.goldens.infinity_parity import (
    CASES,
    SAMPLER_DRAWS,
    SAMPLER_TOP_PS,
    Case,
    measure,
    model_of,
    random_inputs,
    sampler_logits,
)
from tests.goldens.parity import GOLDENS, differences
from tests.tiny_infinity import CONFIG, SIZE, tiny_infinity

TOP_P = pytest.mark.parametrize("top_p", SAMPLER_TOP_PS)
SHAPE = (2, SIZE.num_tokens, CONFIG.token_bits)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_generation_agrees_with_the_official_code(case: Case) -> None:
    with np.load(GOLDENS / f"{case.name}.npz") as arrays:
        official = {name: array for name, array in arrays.items() if not name.startswith("encoded")}
    ours = measure(model_of(case), case, random_inputs(case))
    ours["greedy_bits"] = np.packbits(ours["greedy_bits"].astype(bool), axis=-1)
    report = differences(ours, official)
    assert report.pop("greedy_bits") == 0
    # Measured: 4e-6 of the range after four blocks, the order of float32 sums being another.
    assert max(report.values()) <= 2e-5, report


@pytest.fixture(scope="module")
def official_sampler() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "infinity_sampler.npz") as arrays:
        return dict(arrays)


def sampled(top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds [N], and our bits of SAMPLER_DRAWS evenly spaced uniforms, [N, SAMPLER_DRAWS]."""
    logits = torch.from_numpy(sampler_logits())
    log_odds = logits[:, 1] - logits[:, 0]
    uniforms = ((torch.arange(SAMPLER_DRAWS) + 0.5) / SAMPLER_DRAWS).expand(len(log_odds), -1)
    bits = sample_bits(log_odds[:, None].expand_as(uniforms), uniforms, top_p)
    return log_odds.numpy(), bits.numpy()


@TOP_P
def test_bits_are_certain_where_the_official_sampler_keeps_one_value(
    official_sampler: dict[str, np.ndarray], top_p: float
) -> None:
    log_odds, bits = sampled(top_p)
    kept = official_sampler[f"kept_{top_p}"]
    certain = kept.sum(1) == 1
    assert np.array_equal(bits[certain], np.broadcast_to(kept[certain, 1:], bits[certain].shape))
    # The others take both values, of which one of 1 in e^9 has two of these uniforms.
    share = bits[~certain & (np.abs(log_odds) < 9)].mean(1)
    assert ((share > 0) & (share < 1)).all()


@TOP_P
def test_bits_are_drawn_with_the_official_samplers_probability(
    official_sampler: dict[str, np.ndarray], top_p: float
) -> None:
    _, bits = sampled(top_p)
    share, theirs = bits.mean(1), official_sampler[f"ones_{top_p}"] / SAMPLER_DRAWS
    # Ours is exact to a draw; theirs is binomial.
    deviation = np.sqrt(np.maximum(share * (1 - share), 1 / SAMPLER_DRAWS) / SAMPLER_DRAWS)
    assert (np.abs(share - theirs) <= 4.5 * deviation).all()


def test_a_bit_is_1_from_the_probability_of_0_on() -> None:
    log_odds = torch.tensor([0.25, 0.75]).logit(eps=None).neg().repeat_interleave(2)
    uniforms = torch.tensor([0.2499, 0.2501, 0.7499, 0.7501])
    assert sample_bits(log_odds, uniforms).tolist() == [0, 1, 0, 1]
    assert sample_bits(torch.zeros(2), torch.tensor([0.5 - 2**-25, 0.5])).tolist() == [0, 1]


def test_of_two_equally_probable_values_1_is_the_certain_one() -> None:
    uniforms = torch.tensor([0.1, 0.9])
    assert sample_bits(torch.zeros(2), uniforms, top_p=0.5).tolist() == [1, 1]
    assert sample_bits(torch.zeros(2), uniforms, top_p=0.51).tolist() == [0, 1]


@pytest.mark.parametrize("top_p", [-0.1, 1.1, float("nan")])
def test_top_p_out_of_range_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"top_p must be in \[0, 1\]"):
        sample_bits(torch.zeros(1), torch.zeros(1), top_p)


def test_forced_bits_are_taken_and_others_sampled() -> None:
    model, features, uniforms = tiny_infinity(), torch.ones(2, 3, CONFIG.text_channels), torch.full(SHAPE, 0.5)
    free = generate(model, SIZE, features, uniforms)
    forced = torch.where(torch.arange(SIZE.num_tokens)[:, None] % 2 == 0, 1 - free.bits, -1)
    found = generate(model, SIZE, features, uniforms, forced)
    assert torch.equal(found.bits[:, ::2], 1 - free.bits[:, ::2])
    again = generate(model, SIZE, features, uniforms, found.bits)
    assert torch.equal(again.bits, found.bits)
    assert torch.equal(again.f_hat, found.f_hat)
    for a, b in zip(again.guided_log_odds, found.guided_log_odds, strict=True):
        assert torch.equal(a, b)


def test_guidance_and_temperature_are_linear() -> None:
    model, features = tiny_infinity(), torch.ones(2, 3, CONFIG.text_channels)
    uniforms, forced = torch.zeros(SHAPE), torch.ones(SHAPE, dtype=torch.int64)

    def log_odds(cfg_scale: float, tau: float) -> torch.Tensor:
        found = generate(model, SIZE, features, uniforms, forced, cfg_scale=cfg_scale, tau=tau)
        return torch.cat(found.guided_log_odds, dim=1)

    cond, uncond = log_odds(1.0, 1.0), log_odds(0.0, 1.0)
    torch.testing.assert_close(log_odds(3.0, 0.5), (3 * cond - 2 * uncond) / 0.5, rtol=1e-5, atol=1e-4)


def test_without_a_negative_text_the_learned_one_is_as_long_as_the_text() -> None:
    model = tiny_infinity()
    features, mask = torch.ones(2, 4, CONFIG.text_channels), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    both, both_mask = guided_text(model, features, mask)
    assert torch.equal(both[2:], model.cfg_uncond[:4].expand(2, -1, -1))
    assert torch.equal(both_mask, mask.repeat(2, 1))


def test_texts_of_two_lengths_are_padded_to_the_longer() -> None:
    model = tiny_infinity()
    texts = torch.ones(1, 2, CONFIG.text_channels), torch.full((1, 8, CONFIG.text_channels), 2.0)
    both, mask = guided_text(model, texts[0], negative_features=texts[1])
    assert both.shape == (2, 8, CONFIG.text_channels)
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [1] * 8]


def test_what_does_not_fit_is_refused() -> None:
    model, features, uniforms = tiny_infinity(), torch.ones(2, 3, CONFIG.text_channels), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"uniforms must be \[2, 65, 8\], found \[2, 65, 1\]"):
        generate(model, SIZE, features, uniforms[..., :1])
    with pytest.raises(ValueError, match=r"forced_bits must be \[2, 65, 8\], found \[1, 65, 8\]"):
        generate(model, SIZE, features, uniforms, torch.zeros(1, *SHAPE[1:], dtype=torch.int64))
    with pytest.raises(ValueError, match="cfg_scale must be one number or one for each of 4 stages, found 3"):
        generate(model, SIZE, features, uniforms, cfg_scale=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"text_mask must be \[2, 3\], found \[2, 4\]"):
        generate(model, SIZE, features, uniforms, text_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="a negative text of negative_mask has no token"):
        generate(model, SIZE, features, uniforms, negative_features=features, negative_mask=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a text has at most 6 tokens, found 7"):
        generate(model, SIZE, torch.ones(2, 7, CONFIG.text_channels), uniforms)
    with pytest.raises(ValueError, match="the size has patches of 2, the model's tokens have 1"):
        generate(model, first_stages(4, (3, 4), patchify=True), features, uniforms)
    with pytest.raises(ValueError, match="the size has 4 stages, the model can make at most 3"):
        generate(tiny_infinity(replace(CONFIG, num_levels=3)), SIZE, features, uniforms)
    with pytest.raises(ValueError, match="the size has patches of 1, the model's tokens have 2"):
        generate(tiny_infinity(replace(CONFIG, patchify=True)), SIZE, features, uniforms)
