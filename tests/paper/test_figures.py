from __future__ import annotations

import numpy as np
import pytest
from tiny_model import tiny_source

from nextscale.calib_data.match_probabilities import MatchingReport
from nextscale.evaluate.attention_error import AttentionError
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.bit_operations import BitWidths, bit_operations, model_cost, multiply_adds
from nextscale.models.var.layers import facts_of
from nextscale.paper import figure_attention_error, figure_budget, figure_frequencies, figure_operations
from nextscale.paper._picture_sheet import GAP, HEADER, LEAST_SIDE, MARGIN, picture_sheet
from nextscale.paper._recipe_operations import recipe_operations
from nextscale.paper.figure_kernel import ORDERS, SHOWN, best_shift, bound, kernel, kernels, quantized
from nextscale.paper.figures import FIGURES, file_stem, recipes_of
from nextscale.paper.paper_recipes import paper_recipe


def test_all_figures_of_the_paper_but_its_drawings_and_infinitys_are_there() -> None:
    assert list(FIGURES) == ["1a", "1b", "2", "5", "6", "A", "B", "D", "E", "F"]
    assert file_stem("1a") == "figure_1a"
    for kind in FIGURES.values():
        for name in kind.recipes:
            assert paper_recipe(name).name == name
    assert recipes_of(["A", "E"]) == ["fp32", "brecq-w6a6", "litevar-w6a6", "ours-w6a6", "ours-w4a8", "ours-w4a4"]


# Fig. 2: the kernel.


@pytest.mark.parametrize(
    ("order", "v", "expected"),
    [
        (0, 0.3, 0), (0, 0.5, 1), (0, -0.3, 0), (0, -0.7, -1),
        (1, 0.3, 0.5),  # Q(0.05) = 0, Q(0.55) = 1
        (1, 0.2, 0), (1, -0.6, -0.5), (1, 1.0, 1),
        (2, 0.3, 0.25),  # Q of -0.075, 0.175, 0.425, 0.675
        (2, 0.45, 0.5), (2, 0.1, 0),
    ],
)  # fmt: skip
def test_the_kernel_by_hand(order: int, v: float, expected: float) -> None:
    assert kernel(np.array(v), order, best_shift(order)) == expected


def test_curves_keep_the_bound_and_reach_it() -> None:
    found = kernels()
    assert found["v"] == pytest.approx(SHOWN.tolist(), rel=1e-5)
    for order in (0, *ORDERS):
        shown = found["orders"][str(order)]
        assert shown["shift"] == [0, 1 / 4, 1 / 8][order]
        assert shown["bound"] == [1 / 2, 1 / 4, 1 / 8][order]
        # 2n shifted quantizers average to one of step 1 / 2n.
        step = 1 / (2 * order) if order else 1
        expected = step * np.round(SHOWN / step)
        away = np.abs(np.abs(SHOWN / step % 1) - 0.5) > 1e-6  # from where either neighbour is as near
        assert np.array(shown["value"])[away] == pytest.approx(expected[away], abs=1e-5)
        assert max(shown["error"]) == shown["largest_error"] == pytest.approx(shown["bound"], abs=1e-5)


def test_other_scales_and_shifts() -> None:
    v = np.random.default_rng(0).normal(0, 3, 10_000)
    for scale in (0.1, 2.5):
        assert np.array_equal(quantized(v, scale), scale * np.floor(v / scale + 0.5))
        for order in (1, 2, 4, 8):
            error = np.abs(v - kernel(v, order, best_shift(order, scale), scale))
            assert error.max() <= bound(order, scale) + 1e-12
            # Theorem 1: no other shift does better.
            for shift in np.linspace(0, scale, 23):
                grid = np.linspace(0, scale, 4001)
                worst = np.abs(grid - kernel(grid, order, float(shift), scale)).max()
                assert worst >= bound(order, scale) - scale / 4000


# Fig. 1(a), 1(b), 5 and 6: what JSON says.


def attention_error(rng: np.random.Generator) -> AttentionError:
    sums = [rng.uniform(1, 2, (3, 2)) for _ in range(6)]
    return AttentionError(*sums, np.zeros((3, 2, 3, 6)), 4)


def test_errors_are_of_a_block_or_the_mean() -> None:
    error = attention_error(np.random.default_rng(0))
    relative, squared = np.sqrt(error.error / error.exact), error.error / error.elements
    found = figure_attention_error.numbers({"brecq-w4a6": error}, None)
    assert found["block"] is None
    assert found["shown"]["relative"]["brecq-w4a6"] == pytest.approx(relative.mean(1), rel=1e-5)
    assert found["shown"]["mean_squared"]["brecq-w4a6"] == pytest.approx(squared.mean(1), rel=1e-5)
    found = figure_attention_error.numbers({"brecq-w4a6": error}, 1)
    assert found["block"] == 2
    assert found["shown"]["relative"]["brecq-w4a6"] == pytest.approx(relative[:, 1], rel=1e-5)
    np.testing.assert_allclose(found["by_stage_and_block"]["brecq-w4a6"]["relative"], relative, rtol=1e-5)


def test_frequencies_are_pooled_over_stages() -> None:
    target = np.array([[1.5, 0.5, 0], [4, 2, 0.0]])
    before, after = np.array([[2, 0, 0], [2, 4, 0]]), np.array([[2, 0, 0], [4, 2, 0]])
    report = MatchingReport(target, before, after)
    found = figure_frequencies.numbers(report, matched=True)
    assert found == {
        "tokens": 8,
        "entries": 3,
        "total_variation": {"before": 1.5 / 8, "after": 0.5 / 8},
        "entries_never_taken": {"before": 1, "after": 1},
        "target": [5.5, 2.5, 0],
        "before": [4, 4, 0],
        "after": [6, 2, 0],
    }
    assert "after" not in figure_frequencies.numbers(report, matched=False)


def test_budgets_are_those_of_their_recipes() -> None:
    for name, budget in figure_budget.BUDGETS.items():
        attention = paper_recipe(name).attention
        assert (attention.budget if attention.shift_and_sum != "off" else 0) == budget / 100


# Fig. F: operations.


def test_operations_of_an_integer_model_and_of_full_precision() -> None:
    source = tiny_source()
    model, facts = source.model_info(), facts_of(source.var)
    counts = {part: int(count.sum()) for part, count in multiply_adds(model, facts).items()}
    assert recipe_operations(model, facts, load_recipe("fp32")) == 256 * sum(counts.values())
    expected = sum(int(count.sum()) for count in bit_operations(model, facts, BitWidths(4, 6)).values())
    assert (
        recipe_operations(model, facts, load_recipe("brecq-w4a6"))
        == expected
        == 24 * (sum(counts.values()) - counts["attention"]) + 36 * counts["attention"]
    )
    with_extra = recipe_operations(model, facts, load_recipe("ours-w4a6"), 0.01)
    assert with_extra == pytest.approx(expected + 0.01 * model_cost(model, facts, BitWidths(4, 6)).operations)
    with pytest.raises(ValueError, match="ours-w4a6: shift-and-sum, but its operations are not given"):
        recipe_operations(model, facts, load_recipe("ours-w4a6"))


def test_layers_and_products_in_float_count_16_by_16() -> None:
    source = tiny_source()
    model, facts = source.model_info(), facts_of(source.var)
    plain = recipe_operations(model, facts, load_recipe("brecq-w4a6"))
    tokens = sum(pn * pn for pn in source.var.config.patch_nums)
    fc2 = 2 * 64 * 256 * tokens  # two blocks
    assert recipe_operations(model, facts, load_recipe("litevar-w4a6")) == plain + (256 - 24) * fc2
    counts = {part: int(count.sum()) for part, count in multiply_adds(model, facts).items()}
    floats = counts["attention"] * (256 - 36) + counts["word_embed"] * (256 - 24)
    assert recipe_operations(model, facts, load_recipe("default-w4a6")) == plain + floats


def test_points_are_named_by_their_bits() -> None:
    assert figure_operations.method_and_bits("ours-w4a6") == ("ours", "4/6")
    assert figure_operations.method_and_bits("default") == ("default", "8/8")
    assert figure_operations._ticks([160, 950]) == [100, 200, 300, 500, 1000]
    assert figure_operations._ticks([1e-4, 2e-4]) == pytest.approx([1e-4, 2e-4])


# Fig. A, B and E: the sheet.


def test_the_sheet_enlarges_by_whole_factors() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, (3, 10, 10, 3), np.uint8) for _ in range(2)]
    pixels = picture_sheet(rows, ["Full\nprecision", "BRECQ\n6/6"], ["a", "a very long name of a class", "c" * 99])
    factor = -(-LEAST_SIDE // 10)
    cell = 10 * factor + GAP
    assert pixels.shape == (HEADER + 2 * cell, MARGIN + 3 * cell, 3)
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = HEADER + line * cell, MARGIN + column * cell
            shown = pixels[top : top + cell - GAP, left : left + cell - GAP]
            assert np.array_equal(shown[::factor, ::factor], picture)
            assert np.array_equal(shown[factor - 1 :: factor, factor - 1 :: factor], picture)
    # Titles stay above their columns: between them is nothing.
    for column in range(1, 4):
        edge = MARGIN + column * cell - GAP
        assert (pixels[:HEADER, edge : edge + GAP] == 255).all()
    large = [rng.integers(0, 256, (1, 256, 256, 3), np.uint8)]
    assert picture_sheet(large, ["x"], ["y"]).shape == (HEADER + 260, MARGIN + 260, 3)
