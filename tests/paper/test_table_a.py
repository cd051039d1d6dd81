"""Table A on the tiny model: correlations of all pairs, gone on with, and the paper's beside them."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from model_infos import VAR_D16
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, no_progress, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate._noise_correlation import PAIRS, noise_pairs
from nextscale.evaluate.attention_error import AttentionError, attention_errors
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var.layers import facts_of
from nextscale.paper import _observed_attention, table_a
from nextscale.paper._observed_attention import ObservedAttention, Observing, kept_images
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.paper_table import PaperTable
from nextscale.paper.recipe_bundles import RecipeBundle
from nextscale.paper.table_a import PAPER, ROWS, markdown, measure_table_a, panels, recipe_of_row, require_size
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError

OBSERVING = Observing(images=5, seed=3, cfg_scale=2.0)
FIGURES = [field.name for field in fields(AttentionError)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[RecipeBundle]:
    """Of 8-bit log2 weights, and of row-scaled ones with shift-and-sum, which so small a model affords."""
    folder, source, found = tmp_path_factory.mktemp("rows"), tiny_source(), []
    for name in ("a8-log2", "a8-row-ss"):
        recipe = recipe_of_row(name, [layer.name for layer in facts_of(source.var).layers])
        recipe = replace(recipe, attention=replace(recipe.attention, budget=0.5))
        recipe = replace(recipe, calibration=replace(recipe.calibration, images=2))
        options = BuildOptions(recipe, session=ONE_THREAD, encoder=False, fused=False)
        found.append(RecipeBundle(name, build_bundle(source, folder / name, options, no_progress)))
    return found


def test_the_papers_figures() -> None:
    assert PAPER == {"weights": 2.5e-6, "weights and values": 1.7e-7, "values": 2.3e-6}
    assert tuple(PAPER) == PAIRS


def test_the_rows_differ_in_attention_alone() -> None:
    assert len(ROWS) == 12
    found = {name: paper_recipe(name).as_dict() for name in ROWS}
    for name, recipe in found.items():
        bits, weights, *shifted = name.removeprefix("a").split("-")
        assert recipe["activations"]["bits"] == int(bits)
        assert recipe["attention"]["weights"] == weights
        assert (recipe["attention"]["shift_and_sum"] != "off") == (shifted == ["ss"])
        for word in ("weights", "layers", "calibration", "equalization", "decoder"):
            assert recipe[word] == found["a8-log2"][word]
        assert set(recipe["layers"].values()) == {"float"}


@pytest.mark.parametrize("shared_aln", [False, True])
def test_a_row_has_the_layers_of_the_model_and_none_is_integer(shared_aln: bool) -> None:
    """Of both kinds of adaLN: that of the official models, and the demo model's."""
    facts = facts_of(tiny_source(shared_aln=shared_aln).var)
    layers = [layer.name for layer in facts.layers]
    recipe = recipe_of_row("a6-row", layers)
    recipe.require_layers(layers)
    assert {recipe.layer_choice(name) for name in layers} == {"float"}


def test_attention_in_float_is_refused() -> None:
    with pytest.raises(NextscaleError, match="recipe default: attention is in float, which has no quantization noise"):
        recipe_of_row("default", ())


def test_models_of_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    d30 = replace(VAR_D16, depth=30, num_heads=30, embed_dim=1920)
    require_size(d30, is_demo=False)
    require_size(VAR_D16, is_demo=True)
    with pytest.raises(NextscaleError, match=r"the model has 16 blocks of 1024; Table A is of VAR-d30 \(30 blocks"):
        require_size(VAR_D16, is_demo=False)
    monkeypatch.setattr(table_a, "MOST_OBSERVED", 10**9)
    with pytest.raises(NextscaleError, match="observing attention of this model takes 2 GB; expected at most 1"):
        require_size(d30, is_demo=False)


def test_what_is_measured_in_parts_is_that_of_all_images(
    fp32_bundle: Path, rows: list[RecipeBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the fourth of five images and gone on with; the parts are sums, which float64 rounds."""
    monkeypatch.setattr(_observed_attention, "TOGETHER", 2)
    original, item, told = Bundle.open(fp32_bundle), rows[0], list[tuple[str, int, int]]()

    def interrupt(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if what.startswith("a8-log2") and done == 3:
            raise KeyboardInterrupt

    def observed(on_images: _observed_attention.OnImages) -> ObservedAttention:
        return ObservedAttention(original, OBSERVING, tmp_path, ONE_THREAD, on_images)

    with pytest.raises(KeyboardInterrupt):
        observed(interrupt).error(item.name, item.bundle)
    assert kept_images(original, item.bundle, OBSERVING, tmp_path) == 2
    assert told[-1] == ("a8-log2: observing attention", 3, 5)
    steps = list[int]()
    found = observed(lambda what, done, total: steps.append(done)).error(item.name, item.bundle)
    assert [*dict.fromkeys(steps)] == [2, 3, 4, 5]  # no token is sampled again
    (expected,) = attention_errors(original, [item.bundle], ONE_THREAD, images=5, seed=3, cfg_scale=2.0)
    for name in FIGURES:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, err_msg=name)


def test_a_damaged_file_is_named(fp32_bundle: Path, rows: list[RecipeBundle], tmp_path: Path) -> None:
    original, observing = Bundle.open(fp32_bundle), Observing(1, 0, 2.0)
    attention = ObservedAttention(original, observing, tmp_path, ONE_THREAD, lambda what, done, total: None)
    attention.error("a8-log2", rows[0].bundle)
    for form, message in (("*-attention.npz", "to measure that bundle again"), ("*-tokens.npz", "to sample again")):
        (path,) = tmp_path.glob(form)
        np.savez(path, images=np.array(1))
        fresh = ObservedAttention(original, observing, tmp_path, ONE_THREAD, lambda what, done, total: None)
        with pytest.raises(NextscaleError, match=f"{path.name}: damaged; delete the file {message}"):
            fresh.error("a8-log2", rows[0].bundle)
        path.unlink()


def test_the_table_has_the_papers_figure_beside_each(
    fp32_bundle: Path, rows: list[RecipeBundle], tmp_path: Path
) -> None:
    table = measure_table_a(
        Bundle.open(fp32_bundle),
        rows,
        OBSERVING,
        tmp_path,
        options=ONE_THREAD,
        left_out=["a4-row: why"],
        notes=["note"],
    )
    assert [(row.name, row.method, row.bits) for row in table.correlations.rows] == [
        ("a8-log2", "log2 weights", "32/8"),
        ("a8-row-ss", "row-scaled weights, shift-and-sum", "32/8"),
    ]
    for row, item in zip(table.correlations.rows, table.observed, strict=True):
        assert [cell.paper for cell in row.cells] == [2.5e-6, 1.7e-7, 2.3e-6, None, None, None]
        each = np.abs(item.error.correlations())
        expected = [*np.abs(item.error.pooled_correlations()[0]), *np.nanmean(each, axis=(0, 1))]
        assert [cell.value for cell in row.cells] == pytest.approx(expected)
    page = markdown(table)
    assert "| log2 weights | 32/8 |" in page
    assert "| 2.5e-06 | 1.7e-07 | 2.3e-06 |" in page
    assert "- left out: a4-row: why" in page
    assert "- note" in page
    assert page.count("| a8-row-ss | ") == 8 + 1 + 3  # by stage and block, the bundles, the correlations
    document = table.to_json()
    assert PaperTable.from_json(document["correlations"]) == table.correlations
    assert document["attention"]["a8-log2"]["recipe"]["attention"]["weights"] == "log2"
    assert "kernels" not in document["attention"]["a8-log2"]["recipe"]
    assert np.array(document["attention"]["a8-row-ss"]["relative"]).shape == (4, 2)


def test_correlations_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks' random noises, which are correlated by what they share: each alone, and all pairs together."""
    print("seed", 7)
    rng = np.random.default_rng(7)
    pairs: NDArray[np.float64] = np.zeros((1, 2, 3, 6))
    of_weights = list[tuple[float, float]]()
    each = []
    for block in range(2):
        a = rng.random((1, 1, 3, 4)) + 0.1
        noise = a * (rng.normal(size=a.shape) + rng.normal(size=(1, 1, 3, 1)))
        values = rng.normal(size=(1, 1, 4, 2))
        pairs[0, block] = noise_pairs(a, noise, values, np.ones(a.shape, bool))
        relative = (noise / a)[0, 0]
        found = [(row[i], row[k]) for row in relative for i in range(4) for k in range(4) if i != k]
        each.append(np.corrcoef(np.array(found).T)[0, 1])
        of_weights += found
    ones = np.ones((1, 2))
    error = AttentionError(ones, ones, ones, ones, 0 * ones, ones, pairs, 1)
    recipe = {
        "weights": {"bits": 8},
        "activations": {"bits": 8},
        "attention": {"weights": "log2", "shift_and_sum": "off"},
        "kernels": {"stage": {}},
    }
    row = table_a._row(table_a.Observed("a8-log2", recipe, error))
    assert row.cells[0].value == pytest.approx(abs(np.corrcoef(np.array(of_weights).T)[0, 1]))
    assert row.cells[3].value == pytest.approx(np.abs(each).mean())


def test_lines_with_and_without_shift_and_sum_share_a_panel(
    fp32_bundle: Path, rows: list[RecipeBundle], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from nextscale.evaluate.plot_attention_error import plot_attention_error

    table = measure_table_a(Bundle.open(fp32_bundle), rows, Observing(1, 0, 2.0), tmp_path, options=ONE_THREAD)
    log2, shifted = table.observed
    plain = replace(shifted, name="plain", recipe={**shifted.recipe, "attention": {**shifted.recipe["attention"]}})
    plain.recipe["attention"]["shift_and_sum"] = "off"
    found = panels([log2, plain, shifted])
    assert {panel: list(curves) for panel, curves in found.items()} == {
        "log2 weights, 8 bits": ["plain"],
        "row-scaled weights, 8 bits": ["plain", "shift-and-sum"],
    }
    np.testing.assert_allclose(found["log2 weights, 8 bits"]["plain"].error, log2.error.relative.mean(1))
    file = io.BytesIO()
    plot_attention_error(file, found, "title")
    assert file.getvalue().startswith(b"\x89PNG")


def test_a_recipe_of_another_name_keeps_its_own_words() -> None:
    assert recipe_of_row("brecq-w4a6", ()) == load_recipe("brecq-w4a6")
