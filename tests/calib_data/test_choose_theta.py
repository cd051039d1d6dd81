from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_infos import THREE_STAGES as MODEL
from model_infos import facts_of
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, PATCH_NUMS, L

from nextscale.calib_data.attention_scores import (
    COUNTED,
    EDGES,
    THETA_STEPS,
    ScoreStatistics,
    collect_scores,
    count_scores,
    open_observed,
)
from nextscale.calib_data.choose_theta import (
    FORMS,
    attentive_shares,
    choose_theta,
    kernel_order,
    overhead,
    theta_at,
    theta_index,
)
from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes.observe_scores import PREFIX
from nextscale.models.bit_operations import BitWidths, aggregate_cost, duplicate_cost, model_cost, score_cost
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._request import Request

W4A6 = BitWidths(4, 6)
IMAGES = 3
FACTS = facts_of(MODEL)
HEADS = IMAGES * 2 * MODEL.num_heads * MODEL.depth
KEYS = (1, 5, 21)
GRID = np.arange(1, THETA_STEPS + 1) / THETA_STEPS


@pytest.fixture(scope="module")
def scores() -> list[NDArray[np.float32]]:
    """Of each stage float32 [heads, T]: softmax of wide normal numbers, and the first stage's 1."""
    rng = np.random.default_rng(0)
    weights = [np.exp(2 * rng.normal(size=(HEADS, t))) for t in KEYS]
    return [(w / w.sum(1, keepdims=True)).astype(np.float32) for w in weights]


@pytest.fixture(scope="module")
def statistics(scores: list[NDArray[np.float32]]) -> ScoreStatistics:
    histogram = np.zeros((3, THETA_STEPS), np.int64)
    attentive = np.zeros((3, len(COUNTED), MODEL.num_tokens + 1), np.int64)
    for si, found in enumerate(scores):
        for part in np.split(found, 2):
            count_scores(part.reshape(-1, MODEL.num_heads, KEYS[si]), histogram[si], attentive[si])
    return ScoreStatistics(histogram, attentive, IMAGES, HEADS)


def expected_sums(scores: list[NDArray[np.float32]], theta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Attentive tokens and the sum of their 2n, of an image's row at each stage, token by token."""
    orders = [kernel_order(found, theta) for found in scores]
    tokens = np.array([(n > 0).sum() for n in orders]) / (2 * IMAGES)
    return tokens, np.array([2 * n.sum() for n in orders]) / (2 * IMAGES)


thetas = st.integers(1, THETA_STEPS).map(lambda k: k / THETA_STEPS)


@given(st.floats(0, 1, width=32), thetas)
def test_orders_bring_scores_to_theta_and_no_further_than_needed(score: float, theta: float) -> None:
    """Eq. 15, strict at theta itself; half the order would not do."""
    n, limit = int(kernel_order(score, theta)), float(np.float32(theta))
    if score <= limit:
        assert n == 0
    else:
        assert n & (n - 1) == 0
        assert limit / 2 < score / (2 * n) <= limit


@given(thetas, st.integers(0, 12))
def test_ties_belong_to_the_smaller_order(theta: float, octave: int) -> None:
    """Score 2^m theta has order 2^(m - 1), the next float32 twice that."""
    tie = np.float32(theta) * np.float32(2**octave)
    assert kernel_order(tie, theta) == (0 if octave == 0 else 2 ** (octave - 1))
    assert kernel_order(np.nextafter(tie, np.float32(1e9)), theta) == 2**octave


def test_an_edge_of_the_histogram_is_twice_that_of_half_its_index() -> None:
    assert (EDGES[::2] == 2 * EDGES[: THETA_STEPS // 2 + 1]).all()


def test_counts_are_those_of_every_token(scores: list[NDArray[np.float32]], statistics: ScoreStatistics) -> None:
    above = statistics.above()
    for si, found in enumerate(scores):
        for k in (0, 1, 7, 100, 812, 5000, 9999, 10000):
            assert above[si, k] == (np.minimum(found, 1) > EDGES[k]).sum(), (si, k)
        for k, index in enumerate(COUNTED):
            expected = np.bincount((np.minimum(found, 1) > EDGES[index]).sum(1), minlength=MODEL.num_tokens + 1)
            np.testing.assert_array_equal(statistics.attentive[si, k], expected)


def test_scores_on_edges_are_not_above_them() -> None:
    """Thetas themselves, 0, and a mean that was rounded above 1."""
    scores = np.float32([[0.1, 0.2, 0.0, np.nextafter(np.float32(1), np.float32(2))]])
    histogram, attentive = np.zeros(THETA_STEPS, np.int64), np.zeros((len(COUNTED), 5), np.int64)
    count_scores(scores[None], histogram, attentive)
    assert np.flatnonzero(histogram).tolist() == [999, 1999, 9999]
    assert attentive.sum() == len(COUNTED)


@pytest.mark.parametrize("theta", [0.0001, 0.0003, 0.01, 0.05, 0.1234, 0.3, 0.5, 0.5001, 1.0])
def test_costs_are_those_of_every_token(
    scores: list[NDArray[np.float32]], statistics: ScoreStatistics, theta: float
) -> None:
    tokens, copies = expected_sums([np.minimum(found, 1) for found in scores], theta)
    for form in FORMS:
        found = overhead(statistics, MODEL, FACTS, W4A6, theta, form)
        made = copies if form == "duplicate" else 2 * tokens
        assert found.scores == score_cost(MODEL)
        for cost, expected in (
            (found.duplicate, duplicate_cost(MODEL, tokens, made)),
            (found.aggregate, aggregate_cost(MODEL, W4A6, tokens, made)),
        ):
            assert (cost.memory, cost.operations) == pytest.approx((expected.memory, expected.operations), rel=1e-12)
        assert found.share == found.total.operations / model_cost(MODEL, FACTS, W4A6).operations
        assert found.max_order == max(kernel_order(np.minimum(stage, 1), theta).max() for stage in scores)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [0.002, 0.01, 0.1])
def test_theta_is_the_smallest_of_the_grid_within_the_budget(
    statistics: ScoreStatistics, budget: float, form: str
) -> None:
    """Against a search of all 10,000, which also tells that operations never grow with theta."""
    assert form in FORMS
    shares = np.array([overhead(statistics, MODEL, FACTS, W4A6, theta, form).share for theta in GRID])
    assert (np.diff(shares) <= 1e-15).all()
    choice = choose_theta(statistics, MODEL, FACTS, W4A6, budget, form)
    assert choice.theta == GRID[np.argmax(shares <= budget)]
    assert choice.extra_share <= budget
    assert choice.images == IMAGES


def test_the_residual_form_affords_a_smaller_theta(statistics: ScoreStatistics) -> None:
    duplicate, residual = (choose_theta(statistics, MODEL, FACTS, W4A6, 0.01, form) for form in FORMS)
    assert residual.theta < duplicate.theta


def test_rows_are_as_many_as_most_heads_need(scores: list[NDArray[np.float32]], statistics: ScoreStatistics) -> None:
    for overflow in (0.0, 0.1, 0.5):
        choice = choose_theta(statistics, MODEL, FACTS, W4A6, 0.01, overflow=overflow)
        counted = EDGES[COUNTED[theta_index(choice.theta) >= COUNTED].max()]
        assert 0.9 * choice.theta < counted <= np.float32(choice.theta)
        for found, rows, t in zip(scores, choice.rows, KEYS, strict=True):
            attentive = (np.minimum(found, 1) > counted).sum(1)
            assert (attentive > rows).mean() <= overflow
            assert rows == 0 or (attentive > rows - 1).mean() > overflow
            assert rows <= t


@pytest.mark.parametrize("form", FORMS)
def test_a_given_theta_has_the_places_of_one_that_is_chosen(
    scores: list[NDArray[np.float32]], statistics: ScoreStatistics, form: str
) -> None:
    """That of a budget, given; and another, counted token by token, whose budget is what it costs."""
    assert form in FORMS
    chosen = choose_theta(statistics, MODEL, FACTS, W4A6, 0.01, form)
    given = theta_at(statistics, MODEL, FACTS, W4A6, chosen.theta, form)
    assert given == replace(chosen, budget=chosen.extra_share)
    found = theta_at(statistics, MODEL, FACTS, W4A6, 0.2, form, overflow=0.1)
    assert (found.theta, found.form, found.images) == (0.2, form, IMAGES)
    assert found.budget == found.extra_share == overhead(statistics, MODEL, FACTS, W4A6, 0.2, form).share
    for of_stage, rows in zip(scores, found.rows, strict=True):
        assert ((np.minimum(of_stage, 1) > np.float32(0.2)).sum(1) > rows).mean() <= 0.1


def test_a_budget_below_eq_11_is_refused(statistics: ScoreStatistics) -> None:
    with pytest.raises(NextscaleError, match=r"a budget of 0\.00% is too small: the scores alone"):
        choose_theta(statistics, MODEL, FACTS, W4A6, 1e-6)


@pytest.mark.parametrize("theta", [0.0, -0.1, 1.1, 0.00005, 0.12345])
def test_a_theta_off_the_grid_is_refused(statistics: ScoreStatistics, theta: float) -> None:
    with pytest.raises(ValueError, match="no multiple"):
        overhead(statistics, MODEL, FACTS, W4A6, theta)
    with pytest.raises(ValueError, match="no multiple"):
        theta_at(statistics, MODEL, FACTS, W4A6, theta)


def test_a_choice_survives_json(statistics: ScoreStatistics) -> None:
    choice = choose_theta(statistics, MODEL, FACTS, W4A6)
    assert type(choice)(**{**json.loads(json.dumps(asdict(choice))), "rows": choice.rows}) == choice


def test_shares_by_stage(statistics: ScoreStatistics) -> None:
    shares = attentive_shares(statistics, MODEL, [0.1, 0.5])
    assert shares.shape == (2, 3)
    assert shares[0].tolist() == [statistics.above()[si, 1000] / (HEADS * t) for si, t in enumerate(KEYS)]
    assert shares[:, 0].tolist() == [1, 1]


def test_a_plot_is_a_png(statistics: ScoreStatistics) -> None:
    pytest.importorskip("matplotlib")
    from nextscale.calib_data.plot_theta import plot_attentive_share

    file = io.BytesIO()
    plot_attentive_share(file, attentive_shares(statistics, MODEL, [0.1, 0.5]), [0.1, 0.5], "title")
    assert file.getvalue().startswith(b"\x89PNG")


LABELS = np.arange(3, dtype=np.int64) % NUM_CLASSES


@pytest.fixture(scope="module")
def token_maps() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 128, (3, L))


def test_scores_are_collected_from_forced_tokens(fp32_bundle: Path, token_maps: NDArray[np.int64]) -> None:
    """Counted as the outputs of the same stages are, whatever the batch; the observers leave no trace."""
    before = sorted(fp32_bundle.parent.iterdir())
    seen: list[int] = []
    observed = open_observed(Bundle.open(fp32_bundle), ONE_THREAD)
    collected = collect_scores(observed, Subjects.of_classes(LABELS), token_maps, on_images=seen.append)
    one_by_one = collect_scores(observed, Subjects.of_classes(LABELS), token_maps, batch_size=1)
    names = [f"{PREFIX}blocks.{i}.attn.mix" for i in range(2)]
    assert list(observed.outputs) == names
    request = Request.create(observed.bundle, LABELS, forced_tokens=token_maps)
    stages = list(observed.runner().run(request, names))
    assert seen == [2, 3]
    assert (collected.images, collected.samples) == (3, 3 * 2 * 2 * 2)
    ends = np.cumsum([pn * pn for pn in PATCH_NUMS])
    for si, (stage, t) in enumerate(zip(stages, ends, strict=True)):
        scores = np.stack([stage.outputs[name] for name in names])
        assert scores.shape == (2, 6, 2, t)
        np.testing.assert_allclose(scores.sum(-1), 1, rtol=0, atol=t * 2**-23)
        assert collected.histogram[si].sum() == scores.size
        # Scores of another batch size are rounded otherwise, so that one near an edge may cross it.
        for statistics in (collected, one_by_one):
            above = statistics.above()[si, [100, 500, 2000]]
            for count, edge in zip(above, EDGES[[100, 500, 2000]], strict=True):
                assert (scores > edge + 1e-6).sum() <= count <= (scores > edge - 1e-6).sum()
    assert sorted(fp32_bundle.parent.iterdir()) == before


def test_tokens_are_sampled_where_none_is_given(fp32_bundle: Path) -> None:
    observed = open_observed(Bundle.open(fp32_bundle), ONE_THREAD)
    runs = [
        collect_scores(observed, Subjects.of_classes(LABELS), np.full((3, L), -1, np.int64), seed=seed)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0].histogram, runs[1].histogram)
    assert (runs[0].histogram != runs[2].histogram).any()


def test_a_graph_without_attention_is_refused(fake_bundle: Path) -> None:
    with pytest.raises(NextscaleError, match=r"stage\.onnx: no attention found"):
        open_observed(Bundle.open(fake_bundle), ONE_THREAD)
