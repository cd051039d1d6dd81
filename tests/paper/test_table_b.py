"""Table B: costs against the paper's formulas token by token, and against its own figures; bundles of a given theta."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_infos import THREE_STAGES as MODEL
from model_infos import VAR_D16, facts_of
from tiny_model import ONE_THREAD, no_progress, rounded_down, tiny_source

from nextscale.calib_data.attention_scores import COUNTED, THETA_STEPS, ScoreStatistics, count_scores
from nextscale.graph_passes.recipe import load_recipe
from nextscale.paper import _table_b_quality
from nextscale.paper._table_b_quality import (
    PAPER as PAPER_QUALITY,
)
from nextscale.paper._table_b_quality import (
    QUALITY,
    TableB,
    bundles_at,
    choices,
    kept_scores,
    markdown,
    rounding_note,
    row_recipe,
)
from nextscale.paper._transfer_scores import demo_statistics
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.paper_table import PaperTable, prefixed, shown_rows
from nextscale.paper.recipe_bundles import RecipeBundles
from nextscale.paper.store import Store
from nextscale.paper.table_b import BITS, PAPER, THETAS, costs, most_aggregate
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError

IMAGES, KEYS, QUERIES = 3, (1, 5, 21), (1, 4, 16)
HEADS = IMAGES * 2 * MODEL.num_heads * MODEL.depth
D = MODEL.embed_dim // MODEL.num_heads


@pytest.fixture(scope="module")
def scores() -> list[np.ndarray]:
    """Of each stage, float32 [heads, T]."""
    print("seed", 5)
    rng = np.random.default_rng(5)
    weights = [np.exp(2 * rng.normal(size=(HEADS, t))) for t in KEYS]
    return [(w / w.sum(1, keepdims=True)).astype(np.float32) for w in weights]


@pytest.fixture(scope="module")
def table(scores: list[np.ndarray]) -> PaperTable:
    histogram = np.zeros((3, THETA_STEPS), np.int64)
    attentive = np.zeros((3, len(COUNTED), MODEL.num_tokens + 1), np.int64)
    for stage, found in enumerate(scores):
        count_scores(found.reshape(-1, MODEL.num_heads, KEYS[stage]), histogram[stage], attentive[stage])
    statistics = ScoreStatistics(histogram, attentive, IMAGES, HEADS)
    return costs("three", statistics, MODEL, facts_of(MODEL), 0, lent=False)


def cells(table: PaperTable, name: str) -> np.ndarray:
    """Memory and operations at each theta of a row, float64 [3, 2]; NaN where there is none."""
    (row,) = (row for row in table.rows if row.name == name)
    return np.array([np.nan if cell.value is None else cell.value for cell in row.cells]).reshape(3, 2)


def test_costs_are_those_of_appendix_d_token_by_token(scores: list[np.ndarray], table: PaperTable) -> None:
    """16 T bits and 16 T' T BOPs a head; of a token of order n 16 (2n - 1)(T' + d) bits, 2n (T' + 16 d) and
    (2n - 1) 36 d T' BOPs."""
    heads = MODEL.num_heads * MODEL.depth
    scoring = [sum(16 * heads * t for t in KEYS), sum(16 * heads * q * t for q, t in zip(QUERIES, KEYS, strict=True))]
    np.testing.assert_array_equal(cells(table, "eq-11"), [scoring] * 3)
    weights = [
        (MODEL.embed_dim * 6, MODEL.embed_dim, 3),  # adaLN, at every stage
        (MODEL.embed_dim, MODEL.embed_dim * 4, sum(QUERIES)),  # q, k, v, proj
        (MODEL.embed_dim * 4, MODEL.embed_dim, 2 * sum(QUERIES)),  # fc1, fc2
    ]
    block = sum(rows * columns * tokens for rows, columns, tokens in weights)
    of_head = 2 * MODEL.embed_dim**2 * 3 + MODEL.vocab_size * MODEL.embed_dim * sum(QUERIES)
    embedding = MODEL.latent_channels * MODEL.embed_dim * (sum(QUERIES) - 1)
    attention = 2 * MODEL.embed_dim * sum(q * t for q, t in zip(QUERIES, KEYS, strict=True))
    operations = 24 * (MODEL.depth * block + of_head + embedding) + 36 * MODEL.depth * attention
    stored = MODEL.depth * 18 * MODEL.embed_dim**2 + MODEL.embed_dim * (
        2 * MODEL.embed_dim + MODEL.vocab_size + MODEL.latent_channels
    )
    memory = 4 * stored + 6 * 2 * MODEL.embed_dim * MODEL.depth * sum(QUERIES)
    np.testing.assert_array_equal(cells(table, "baseline"), [[memory, operations]] * 3)
    for i, theta in enumerate(THETAS):
        copying, residual, aggregating, aggregating_residual = np.zeros(2), np.zeros(2), 0.0, 0.0
        for found, queries in zip(scores, QUERIES, strict=True):
            for score in found[found > np.float32(theta)].astype(np.float64):
                n = 1
                while score / (2 * n) > np.float64(np.float32(theta)):
                    n *= 2
                copying += 16 * (2 * n - 1) * (queries + D), 2 * n * (queries + 16 * D)
                residual += 16 * (queries + D), 2 * (queries + 16 * D)
                aggregating += (2 * n - 1) * 36 * D * queries
                aggregating_residual += 36 * D * queries
        rows = 2 * IMAGES
        np.testing.assert_allclose(cells(table, "duplicate")[i], copying / rows, rtol=1e-12)
        np.testing.assert_allclose(cells(table, "eq-13")[i], [np.nan, aggregating / rows], rtol=1e-12)
        base = np.array([memory, operations]) + scoring
        total = base + copying / rows + [0, aggregating / rows]
        np.testing.assert_allclose(cells(table, "total")[i], total, rtol=1e-12)
        with_one_row = base + residual / rows + [0, aggregating_residual / rows]
        np.testing.assert_allclose(cells(table, "total-residual")[i], with_one_row, rtol=1e-12)
        assert aggregating / rows < cells(table, "eq-13-at-most")[i, 1]


def test_the_papers_figures(table: PaperTable) -> None:
    """Its totals are its parts', to the digits that it gives, but for Eq. 13, which Appendix D does not allow."""
    assert PAPER[0.05]["duplicate"] == (23.21e6, 0.28e9)
    assert PAPER[0.1]["eq-13"] == (None, 11.19e9)
    assert PAPER[0.2]["total"] == (1.03e9, 3.72e12)
    for of_theta in PAPER.values():
        parts = [of_theta[name] for name in ("baseline", "eq-11", "duplicate", "eq-13")]
        assert sum(part.operations for part in parts) == pytest.approx(of_theta["total"].operations, abs=0.0101e12)
        assert sum(part.memory or 0 for part in parts) == pytest.approx(of_theta["total"].memory, abs=0.0101e9)
    assert most_aggregate(VAR_D16, BITS, 0.05) == pytest.approx(16.0e9, rel=0.005)
    assert most_aggregate(VAR_D16, BITS, 0.1) == pytest.approx(8.0e9, rel=0.005)
    assert PAPER[0.05]["eq-13"].operations > 2 * most_aggregate(VAR_D16, BITS, 0.05)
    note = next(note for note in table.notes if "contradicts" in note)
    assert "at most 16.0 G at theta 0.05, where its table has 33.35 G" in note
    assert PAPER_QUALITY["brecq-w4a6"] == (145.6, 11.16, 10.57)
    assert PAPER_QUALITY["theta-0.1"] == (155.2, 10.25, 9.57)
    assert PAPER_QUALITY["theta-0.2"].fid_to_full_precision == 9.71
    assert QUALITY.rows == ("fp32", *PAPER_QUALITY)


def test_d16_counts_as_the_paper_does() -> None:
    """All but what it says otherwise: its operations, and Eq. 11's."""
    table = costs("d16", demo_statistics(VAR_D16), VAR_D16, facts_of(VAR_D16), 0, lent=True)
    assert cells(table, "baseline")[0, 1] == pytest.approx(PAPER[0.05]["baseline"].operations, abs=0.005e12)
    assert cells(table, "eq-11")[0, 1] == pytest.approx(PAPER[0.05]["eq-11"].operations, abs=0.005e9)
    assert "the demo model's attention, lent to d16" in table.notes[1]


def test_a_page_has_prefixes_and_the_papers_beside_ours(table: PaperTable) -> None:
    page = markdown(TableB(table, None, ("Baseline: why",)))
    assert "| paper: theta 0.2: BOPs |" in page
    assert "| 23.21 M | 280 M | 9.58 M | 130 M | 3.94 M | 60 M |" in page
    assert "- left out of B(b): Baseline: why" in page
    assert PaperTable.from_json(TableB(table, table).to_json()["quality"]).rows == table.rows
    rows = {cells[0]: cells for cells in shown_rows(table)}
    assert rows["Eq. 13"][2] == ""  # which needs no memory
    assert rows["Eq. 13"][-5] == "33.35 G"
    assert rows["Baseline"][-1] == "3.72 T"


@pytest.mark.parametrize(
    ("number", "shown"), [(3.7172e12, "3.72 T"), (1.0e9, "1 G"), (999.6e3, "1e+03 k"), (12.34, "12.3 "), (0, "0 ")]
)
def test_numbers_with_a_prefix(number: float, shown: str) -> None:
    assert prefixed(number) == shown


def test_scores_are_observed_once(fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_table_b_quality, "SCORE_IMAGES", 3)
    original, steps = Bundle.open(fp32_bundle), list[tuple[str, int, int]]()

    def scores(seed: int = 0, *, lent: bool = False) -> ScoreStatistics:
        return kept_scores(
            original, seed, tmp_path, ONE_THREAD, lambda what, done, total: steps.append((what, done, total)), lent=lent
        )

    found = scores()
    assert steps == [("observing attention", 2, 3), ("observing attention", 3, 3)]
    assert found.images == 3
    again = scores()
    np.testing.assert_array_equal(again.histogram, found.histogram)
    np.testing.assert_array_equal(again.attentive, found.attentive)
    assert len(steps) == 2
    assert (scores(seed=1).histogram != found.histogram).any()
    assert scores(lent=True).images == 32  # the demo model's, whatever the seed
    for path in tmp_path.glob("*-scores.npz"):
        np.savez(path, histogram=found.histogram)
    with pytest.raises(NextscaleError, match=r"-scores\.npz: damaged; delete the file to observe attention again"):
        scores()


def test_bundles_of_a_theta_have_it_and_are_kept_apart(tmp_path: Path) -> None:
    """Rounding learned with a theta is preferred; another theta is another bundle."""
    source, roundings = tiny_source(), tmp_path / "roundings"
    own, recipe = roundings / "theta-0.2", row_recipe("theta-0.2", nearest=False)
    assert recipe == paper_recipe("shift-and-sum-w4a6")
    assert row_recipe("brecq-w4a6", nearest=False) == load_recipe("brecq-w4a6")
    assert row_recipe("theta-0.1", nearest=True).weights.rounding == "nearest"
    recipe = replace(recipe, calibration=replace(recipe.calibration, images=2))
    with Store(tmp_path / "store") as store:
        bundles = RecipeBundles(store, lambda: source, roundings, ONE_THREAD, encoder=False)
        model = source.model_info()
        found = choices(demo_statistics(model), model, facts_of(model))
        assert [choice.theta for choice in found] == [*THETAS]
        of_theta = [bundles_at(bundles, choice) for choice in found]
        missing = of_theta[2].missing(recipe)
        assert missing is not None
        assert missing.endswith(f"{roundings / 'shift-and-sum-w4a6.safetensors'}")
        own.mkdir(parents=True)
        rounded_down(recipe).save(roundings / "shift-and-sum-w4a6.safetensors")
        rounded_down(recipe).save(own / "shift-and-sum-w4a6.safetensors")
        assert bundles_at(bundles, found[2]).roundings == own
        (note,) = rounding_note(bundles, nearest=False)
        assert note.startswith("the rounding of the rows of theta 0.05, 0.1 is that of shift-and-sum-w4a6")
        assert rounding_note(bundles, nearest=True) == ["weights are rounded to nearest"]
        first = of_theta[0].build(recipe, no_progress).bundle
        shift = first.manifest.recipe["shift_and_sum"]
        assert (shift["theta"], tuple(shift["rows"])) == (0.05, found[0].rows)
        assert of_theta[1].built(recipe) is None
        assert of_theta[0].built(recipe) is not None
