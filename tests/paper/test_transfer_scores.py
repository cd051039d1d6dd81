from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_infos import THREE_STAGES as MODEL
from model_infos import VAR_D16, facts_of

from nextscale.calib_data.attention_scores import COUNTED, THETA_STEPS, ScoreStatistics, count_scores
from nextscale.calib_data.choose_theta import attentive_shares, choose_theta
from nextscale.models.bit_operations import BitWidths, keys
from nextscale.paper._transfer_scores import demo_statistics, statistics_writer
from nextscale.runtime.image_io import write_files

THETAS = (0.01, 0.05, 0.2)


@pytest.fixture
def written(tmp_path: Path) -> tuple[ScoreStatistics, Path]:
    """Statistics of MODEL on three images, and their file."""
    rng, images = np.random.default_rng(0), 3
    heads = images * 2 * MODEL.num_heads * MODEL.depth
    histogram = np.zeros((3, THETA_STEPS), np.int64)
    attentive = np.zeros((3, len(COUNTED), MODEL.num_tokens + 1), np.int64)
    for stage, t in enumerate(keys(MODEL)):
        weights = np.exp(2 * rng.normal(size=(heads, t)))
        scores = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
        count_scores(scores, histogram[stage], attentive[stage])
    found = ScoreStatistics(histogram, attentive, images, heads)
    path = tmp_path / "attention.npz"
    write_files({path: statistics_writer(found, MODEL)})
    return found, path


def test_the_same_model_gets_its_own(written: tuple[ScoreStatistics, Path]) -> None:
    statistics, path = written
    same = demo_statistics(MODEL, path)
    np.testing.assert_array_equal(same.histogram, statistics.histogram)
    np.testing.assert_array_equal(same.attentive, statistics.attentive)
    assert (same.images, same.samples) == (statistics.images, statistics.samples)


def test_a_larger_model_has_the_same_shares(written: tuple[ScoreStatistics, Path]) -> None:
    statistics, path = written
    larger = replace(MODEL, depth=4, num_heads=6, embed_dim=512)
    found = demo_statistics(larger, path)
    assert found.samples == 6 * statistics.samples
    np.testing.assert_allclose(
        attentive_shares(found, larger, THETAS), attentive_shares(statistics, MODEL, THETAS), rtol=1e-9
    )
    for index in (100, 500, 2000):
        assert found.budgets(index, 1e-3) == statistics.budgets(index, 1e-3)


def test_other_stages_take_the_nearest(written: tuple[ScoreStatistics, Path]) -> None:
    """Keys 1, 5, 21 lend to 1, 17, 81: the first as it is, the others the last stage's share of more tokens."""
    statistics, path = written
    other = replace(MODEL, stage_sizes=((1, 1), (4, 4), (8, 8)), latent_size=(8, 8))
    shares = attentive_shares(demo_statistics(other, path), other, THETAS)
    own = attentive_shares(statistics, MODEL, THETAS)
    np.testing.assert_allclose(shares, own[:, [0, 2, 2]], atol=0.01)
    places = demo_statistics(other, path).budgets(500, 1e-3)
    last = statistics.budgets(500, 1e-3)[2]
    assert places[2] == round(last * 81 / 21)


def test_what_is_shipped_fits_the_papers_model() -> None:
    statistics = demo_statistics(VAR_D16)
    choice = choose_theta(statistics, VAR_D16, facts_of(VAR_D16), BitWidths(8, 8), 0.01)
    assert 0.001 < choice.theta < 0.02
    assert 0.009 < choice.extra_share <= 0.01
    assert choice.rows[:4] == (1, 5, 14, 30)
    assert all(rows <= tokens for rows, tokens in zip(choice.rows, keys(VAR_D16), strict=True))
