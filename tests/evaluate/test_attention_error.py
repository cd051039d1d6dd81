from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import attention_oracle as oracle
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_model import CALIBRATION_IMAGES, NUM_CLASSES, ONE_THREAD, build_tiny, no_progress, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate._dequantized_attention import AttentionQuantizer
from nextscale.evaluate.attention_error import (
    AttentionError,
    as_json,
    attention_errors,
    attention_sums,
    by_block,
    by_stage,
    open_observed,
)
from nextscale.evaluate.plot_attention_error import Curve, plot_attention_error
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.graph_passes.observe_attention import output_names
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, CalibrationRecipe, Recipe
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._request import Request

WEIGHTS = ("log2", "log2-row", "row", "uniform")
STAGES, BLOCKS = 4, 2
RECIPES = {
    "row": AttentionRecipe("integer", "image", "row"),
    "row, shift-and-sum": AttentionRecipe("integer", "image", "row", "residual", budget=0.1),
    "static": AttentionRecipe("integer", "tensor", "log2-row", "duplicate", budget=0.1),
    "log2": AttentionRecipe("integer", "image", "log2"),
}
# The product's scale and its last multiplication are in float32.
ROUNDING = 8 * 2.0**-24


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The tiny model with integer attention of 6 bits."""
    folder, built = tmp_path_factory.mktemp("attention"), {}
    for name, attention in RECIPES.items():
        recipe = Recipe(name, activations=ActivationRecipe(6), attention=attention)
        recipe = replace(recipe, calibration=CalibrationRecipe(CALIBRATION_IMAGES))
        build_bundle(tiny_source(), folder / name, BuildOptions(recipe, session=ONE_THREAD, encoder=False), no_progress)
        built[name] = Bundle.open(folder / name)
    return built


@pytest.fixture(scope="module")
def errors(fp32_bundle: Path, bundles: dict[str, Bundle]) -> dict[str, AttentionError]:
    found = attention_errors(Bundle.open(fp32_bundle), list(bundles.values()), ONE_THREAD, images=3, batch_size=2)
    return dict(zip(bundles, found, strict=True))


def operands(rng: np.random.Generator, keys: int = 9) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A [4, 2, 5, T], whose rows sum to 1, and V [4, 2, T, 6]."""
    logits = rng.normal(0, 3, (4, 2, 5, keys))
    a = np.exp(logits - logits.max(-1, keepdims=True))
    return (a / a.sum(-1, keepdims=True)).astype(np.float32), rng.normal(size=(4, 2, keys, 6)).astype(np.float32)


# What codes mean


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("theta", [None, 0.05], ids=["plain", "shift-and-sum"])
@pytest.mark.parametrize("magnitude", [None, 2.0], ids=["dynamic", "static"])
def test_dequantized_operands_multiply_to_the_oracles_product(
    weights: str, bits: int, theta: float | None, magnitude: float | None
) -> None:
    scale = None if magnitude is None else np.float32(2 * magnitude / (2**bits - 1))
    limit = None if theta is None else np.float32(theta)
    quantizer = AttentionQuantizer(weights, bits, scale, limit, (0, 4))
    for seed in range(3):
        print("seed", seed)
        a, v = operands(np.random.default_rng(seed))
        found = quantizer.dequantize(a, v, stage=1)
        expected = oracle.mix(a, v, weights, bits, 2, theta, 4, magnitude)
        # A static scale is rounded from float64 here, from a float32 product there: one unit in the last place.
        size = np.abs(found.weights) @ np.abs(found.values)
        assert (np.abs(found.weights @ found.values - expected) <= 2.0**-23 * size + 1e-30).all()


def test_what_log2_cannot_represent_is_marked() -> None:
    """Of 2 bits the finest power is 2^-3; below 2^-3.5 a weight becomes larger than it is."""
    a = np.array([0.5, 0.25, 0.06, 0.04], np.float32).reshape(1, 1, 1, 4).repeat(2, 0)
    v = np.ones((2, 1, 4, 1), np.float32)
    found = AttentionQuantizer("log2", 2).dequantize(a, v, 0)
    assert found.representable[0, 0, 0].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(found.weights[0, 0, 0], [0.5, 0.25, 0.0625, 0.0625])
    assert AttentionQuantizer("row", 2).dequantize(a, v, 0).representable.all()


# The figures


def test_sums_are_those_of_their_definitions() -> None:
    a, v = operands(np.random.default_rng(5))
    quantizer = AttentionQuantizer("row", 4)
    found = quantizer.dequantize(a, v, 0)
    product = (found.weights @ found.values).astype(np.float32)
    sums, pairs = attention_sums(a, v, product, quantizer, 0)
    exact = a.astype(np.float64) @ v
    expected = [
        np.square(exact).sum(),
        np.square(product - exact).sum(),
        np.square((found.weights - a) @ v).sum(),
        np.square(a @ (found.values - v)).sum(),
    ]
    np.testing.assert_allclose(sums[:4], expected, rtol=1e-10)
    assert sums[4] <= ROUNDING**2 * sums[0]
    assert sums[5] == exact.size
    assert pairs.shape == (3, 6)
    assert pairs[:, 0].tolist() == [4 * 2 * 5 * 9 * 8, 4 * 2 * 5 * 9 * 6, 4 * 2 * 6 * 9 * 8]


def test_a_float_product_has_no_error() -> None:
    a, v = operands(np.random.default_rng(6))
    sums, pairs = attention_sums(a, v, a @ v, None, 0)
    assert 0 < sums[1] == sums[4] <= ROUNDING**2 * sums[0]
    assert sums[2] == sums[3] == 0
    assert not pairs.any()


def one_block(**sums: float) -> AttentionError:
    figures = {
        "exact": 4.0,
        "error": 0.0,
        "weights_part": 0.0,
        "values_part": 0.0,
        "unexplained": 0.0,
        "elements": 8.0,
    } | sums
    return AttentionError(*(np.array([[value]]) for value in figures.values()), pairs=np.zeros((1, 1, 3, 6)), images=1)  # type: ignore[misc, arg-type]


def test_figures_of_known_sums() -> None:
    error = one_block(error=1.0, weights_part=0.25, values_part=0.5)
    assert error.relative == 0.5
    assert error.relative_of_weights == 0.25
    assert error.relative_of_values == pytest.approx(0.5**0.5 / 2)
    assert error.mean_squared == 1 / 8
    assert error.values_share == pytest.approx(2 / 3)
    assert error.explained == 0.75
    nothing = one_block()
    assert np.isnan(nothing.values_share).all()
    assert np.isnan(nothing.explained).all()


def test_means_by_stage_and_block_leave_out_what_is_missing() -> None:
    figure = np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(by_stage(figure), [2, 5, np.nan])
    np.testing.assert_array_equal(by_block(figure), [1, 4])


# Bundles


def test_numpy_explains_the_graph(errors: dict[str, AttentionError]) -> None:
    """Up to a log2 weight that lies between two powers, which the two logarithms may round differently."""
    for name, error in errors.items():
        assert error.error.shape == (STAGES, BLOCKS)
        bound = 1e-3 if "log2" in RECIPES[name].weights else ROUNDING
        assert (np.sqrt(error.unexplained / error.exact) <= bound).all(), name


def test_errors_are_of_six_bits(errors: dict[str, AttentionError]) -> None:
    for error in errors.values():
        assert error.images == 3
        assert ((error.relative > 1e-4) & (error.relative < 0.3)).all()
        # Two noises that are nearly independent.
        assert (np.abs(error.explained - 1) < 0.3).all()


def test_one_token_gets_all_weight_so_that_the_error_is_the_values(errors: dict[str, AttentionError]) -> None:
    for error in errors.values():
        assert (error.weights_part[0] == 0).all()
        assert (error.values_share[0] == 1).all()


def test_shift_and_sum_acts_on_the_values_part(errors: dict[str, AttentionError]) -> None:
    plain, shifted = errors["row"], errors["row, shift-and-sum"]
    # All but the largest value, half a step beyond the last code, which no order brings nearer.
    assert (shifted.values_part[0] < plain.values_part[0] / 10).all()
    assert (shifted.relative_of_values < plain.relative_of_values).all()
    # The weights' codes are the same; only what earlier blocks made of their inputs differs.
    np.testing.assert_allclose(shifted.relative_of_weights[1:], plain.relative_of_weights[1:], rtol=0.2)


def test_log2_is_coarser_than_rows(errors: dict[str, AttentionError]) -> None:
    assert (errors["log2"].relative_of_weights[1:] > 2 * errors["row"].relative_of_weights[1:]).all()
    assert (errors["log2"].values_share[1:] < errors["row"].values_share[1:]).all()


def test_figures_are_those_of_the_exposed_values(
    fp32_generator: Generator, bundles: dict[str, Bundle], errors: dict[str, AttentionError]
) -> None:
    """Computed once more, image by image."""
    (observed, quantizers), sums = open_observed(bundles["row"], ONE_THREAD), np.zeros((2, STAGES, BLOCKS))
    outputs = [output for name in quantizers for output in output_names(name)]
    assert set(quantizers) == {f"blocks.{i}.attn.mix" for i in range(BLOCKS)}
    for i, label in enumerate(evaluation_labels(NUM_CLASSES, 3, seed=1)):
        maps = fp32_generator.generate([label], seed=1, first_image=i).token_maps
        request = Request.create(observed.bundle, [label], seed=1, first_image=i, forced_tokens=maps)
        for stage in observed.runner().run(request, outputs):
            for block, name in enumerate(quantizers):
                a, v, product = (stage.outputs[output].astype(np.float64) for output in output_names(name))
                sums[:, stage.stage, block] += np.square(product - a @ v).sum(), np.square(a @ v).sum()
    # A batch of 2 rounds a little differently, which moves some codes.
    np.testing.assert_allclose(errors["row"].relative, np.sqrt(sums[0] / sums[1]), rtol=0.02)


def test_a_float_bundle_has_no_error_and_no_shares(fp32_bundle: Path) -> None:
    seen: list[int] = []
    reference = Bundle.open(fp32_bundle)
    for error in attention_errors(
        reference, [reference, reference], ONE_THREAD, images=3, batch_size=2, on_images=seen.append
    ):
        assert (error.relative <= ROUNDING).all()
        assert np.isnan(error.values_share).all()
        assert np.isnan(error.correlations()).all()
    assert seen == [2, 3, 5, 6]


def test_a_bundle_of_another_model_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    other = Bundle.open(build_tiny(tmp_path / "other", "fp32", tiny_source(depth=1)))
    with pytest.raises(NextscaleError, match=r"other: not the model of .+; compare bundles of one model"):
        attention_errors(Bundle.open(fp32_bundle), [other], ONE_THREAD, images=1)


def edited(bundle: Bundle, target: Path, edit: Callable[[dict[str, object]], None]) -> Bundle:
    manifest = json.loads((shutil.copytree(bundle.path, target) / "manifest.json").read_text())
    edit(manifest["recipe"])
    (target / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(target)


def test_a_recipe_that_is_not_the_graphs_is_refused(
    fp32_bundle: Path, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    wrong = edited(bundles["row"], tmp_path / "wrong", lambda recipe: recipe["attention"].update(weights="log2"))  # type: ignore[attr-defined]
    with pytest.raises(NextscaleError, match=r"wrong: its attention does not compute what its recipe says"):
        attention_errors(Bundle.open(fp32_bundle), [wrong], ONE_THREAD, images=1)


def test_a_graph_without_attention_is_refused(fp32_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fp32_bundle, tmp_path / "none")
    model = ir.load(folder / "stage.onnx")
    for node in model.graph:
        if node.op_type == "Softmax":
            node.op_type = "LogSoftmax"
    ir.save(model, folder / "stage.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["stage.onnx"]["size"] = (folder / "stage.onnx").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NextscaleError, match=r"stage\.onnx: no attention found"):
        attention_errors(Bundle.open(fp32_bundle), [Bundle.open(folder)], ONE_THREAD, images=1)


def test_json_is_plain_and_strict(errors: dict[str, AttentionError]) -> None:
    error = errors["row"]
    found = json.loads(json.dumps(as_json(error), allow_nan=False))
    assert found["images"] == 3
    np.testing.assert_allclose(found["relative"], error.relative, rtol=1e-5)
    assert found["values_share"][0] == [1.0] * BLOCKS
    weights = found["correlations"]["weights"]
    assert weights["by_stage_and_block"][0] == [None] * BLOCKS
    assert -1 <= weights["pooled"] <= 1
    # Three images' two rows and two heads, queries and ordered pairs of keys, of stages of 1, 4, 9 and 16 tokens.
    assert weights["pairs"] == 3 * 2 * 2 * BLOCKS * (4 * 5 * 4 + 9 * 14 * 13 + 16 * 30 * 29)


def test_the_plot_is_a_picture(errors: dict[str, AttentionError]) -> None:
    curves = {name: Curve(by_stage(e.relative), by_stage(e.relative_of_weights)) for name, e in errors.items()}
    file = io.BytesIO()
    plot_attention_error(file, {"a": curves, "b": curves, "c": curves}, "errors")
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
