from __future__ import annotations

import numpy as np
import pytest
import torch

from nextscale.models.var.reference import generate, kept_entries, sample, to_pixels
from tests.goldens.parity import CASES, GOLDENS, SAMPLER_DRAWS, SAMPLER_SETTINGS, models_of, sampler_logits

SETTINGS = pytest.mark.parametrize(("top_k", "top_p"), SAMPLER_SETTINGS)


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "sampler.npz") as arrays:
        return dict(arrays)


@SETTINGS
def test_kept_sets_are_those_of_the_official_sampler(official: dict[str, np.ndarray], top_k: int, top_p: float) -> None:
    kept = kept_entries(torch.from_numpy(sampler_logits()), top_k, top_p)
    np.testing.assert_array_equal(kept.numpy(), official[f"kept_{top_k}_{top_p}"])


@SETTINGS
def test_draws_have_the_official_samplers_distribution(
    official: dict[str, np.ndarray], top_k: int, top_p: float
) -> None:
    theirs = official[f"draws_{top_k}_{top_p}"].astype(np.float64)
    uniforms = torch.rand(SAMPLER_DRAWS, generator=torch.Generator().manual_seed(0))
    for row, expected in zip(sampler_logits(), theirs, strict=True):
        logits = torch.from_numpy(row).expand(SAMPLER_DRAWS, -1)
        tokens = np.concatenate(
            [
                sample(*chunk, top_k, top_p).numpy()
                for chunk in zip(logits.split(2000), uniforms.split(2000), strict=True)
            ]
        )
        drawn = np.bincount(tokens, minlength=len(row))
        # Two-sample chi-square over the entries drawn often enough; the rest together is one more.
        often = drawn + expected >= 20
        a, b = (np.append(counts[often], counts[~often].sum()) for counts in (drawn, expected))
        a, b = a[a + b > 0], b[a + b > 0]
        chi_square = np.sum((a - b) ** 2 / (a + b))
        freedom = len(a) - 1
        # Mean and standard deviation of chi-square are freedom and (2 freedom)^1/2.
        assert chi_square <= freedom + 4 * np.sqrt(2 * freedom)


def test_cumulation_is_in_codebook_order() -> None:
    logits = torch.tensor([[0.2, 0.1, 0.4, 0.3]]).log().expand(5, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.31, 0.71])
    assert sample(logits, uniforms).tolist() == [0, 0, 1, 2, 3]


def test_top_k_keeps_ties_and_top_p_counts_strictly_better_entries() -> None:
    logits = torch.tensor([[0.3, 0.3, 0.1, 0.3]]).log()
    assert kept_entries(logits, top_k=2).tolist() == [[True, True, False, True]]
    assert kept_entries(logits, top_p=0.1).tolist() == [[True, True, False, True]]
    assert kept_entries(logits, top_p=0.95).tolist() == [[True, True, True, True]]


def test_the_largest_uniform_takes_the_last_kept_entry() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    assert sample(logits, torch.tensor([1 - 2**-24]), top_k=3).tolist() == [2]
    assert sample(logits, torch.tensor([1.0]), top_k=3).tolist() == [2]


def test_top_k_of_one_is_greedy() -> None:
    logits = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(logits, uniforms, top_k=1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("top_k", "top_p", "message"),
    [(-1, 0.0, "top_k"), (5, 0.0, "top_k"), (0, -0.1, "top_p"), (0, 1.1, "top_p"), (0, float("nan"), "top_p")],
)
def test_sampling_parameters_out_of_range_are_refused(top_k: int, top_p: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_entries(torch.zeros(1, 4), top_k, top_p)


@pytest.fixture(scope="module")
def models() -> tuple:
    return models_of(CASES[0])


@pytest.fixture(scope="module")
def uniforms(models: tuple) -> torch.Tensor:
    return torch.rand(3, models[0].config.num_tokens, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([1, 5, 9])


def test_an_image_does_not_depend_on_its_batch(models: tuple, uniforms: torch.Tensor) -> None:
    together = generate(*models, LABELS, uniforms)
    alone = generate(*models, LABELS[1:2], uniforms[1:2])
    assert torch.equal(together.token_maps[1:2], alone.token_maps)


def test_what_was_generated_is_what_its_tokens_decode_to(models: tuple, uniforms: torch.Tensor) -> None:
    result = generate(*models, LABELS, uniforms, top_k=20, top_p=0.9)
    vqvae = models[1]
    sizes = [pn * pn for pn in vqvae.config.patch_nums]
    f_hat, _ = vqvae.quantize.accumulate(result.token_maps.split(sizes, dim=1))
    torch.testing.assert_close(result.f_hat, f_hat)
    assert torch.equal(result.images, to_pixels(vqvae.decode(result.f_hat)))
    assert result.images.shape == (3, vqvae.config.image_size, vqvae.config.image_size, 3)
    assert [logits.shape[1] for logits in result.guided_logits] == sizes


def test_forced_tokens_are_taken_and_the_rest_is_sampled(models: tuple, uniforms: torch.Tensor) -> None:
    free = generate(*models, LABELS, uniforms).token_maps
    forced = free.clone()
    forced[:, 14:] = -1  # the first three stages as sampled, the rest sampled again
    assert torch.equal(generate(*models, LABELS, uniforms, forced).token_maps, free)
    forced[0, 0] = (free[0, 0] + 1) % 64
    again = generate(*models, LABELS, uniforms, forced).token_maps
    assert again[0, 0] == forced[0, 0]
    assert torch.equal(again[1:], free[1:])


def test_uniforms_of_another_length_are_refused(models: tuple, uniforms: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uniforms must be \[3, 55\], found \[3, 54\]"):
        generate(*models, LABELS, uniforms[:, 1:])
