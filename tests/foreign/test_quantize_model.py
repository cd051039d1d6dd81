"""A foreign model through all steps: what becomes integer, with which kernels, and what it loses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import nextscale
from nextscale.foreign.normalize import normalize
from nextscale.foreign.own_errors import Error
from nextscale.foreign.quantize_model import (
    RECIPE_PROPERTY,
    QuantizeOptions,
    foreign_recipe,
    quantize_model,
    read_model,
)
from nextscale.foreign.report import Line, Report
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    Recipe,
    WeightRecipe,
)
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

from .block_model import LAYERS, MIX, TEXT, block, block_proto, samples, weights

UNTIMED = QuantizeOptions(SessionOptions(threads=1), rounds=0)
BY_TOKEN = Recipe("by token", activations=ActivationRecipe(granularity="token"))
ALL_STATIC = Recipe(
    "static", activations=ActivationRecipe(granularity="tensor"), attention=AttentionRecipe("integer", "tensor")
)
BY_IMAGE = Recipe(
    "by image",
    activations=ActivationRecipe(granularity="image"),
    attention=AttentionRecipe(products="integer", weights="row"),
)
PACKED = Recipe("packed", weights=WeightRecipe(bits=4, packed=True), activations=ActivationRecipe(granularity="token"))
LEAST_SQUARES = Recipe("least squares", activations=ActivationRecipe(granularity="tensor", range="mse"))
# What the output may lose at most, relative; of random weights.
RECIPES = {"by token": (BY_TOKEN, 0.03), "static": (ALL_STATIC, 0.05), "by image": (BY_IMAGE, 0.05)}
RECIPES |= {"packed": (PACKED, 0.3), "least squares": (LEAST_SQUARES, 0.05)}


def lines(report: Report) -> dict[str, Line]:
    return {line.name: line for line in report.lines}


@pytest.mark.exact_products
@pytest.mark.parametrize(("recipe", "most"), RECIPES.values(), ids=RECIPES.keys())
def test_all_that_multiplies_becomes_integer(recipe: Recipe, most: float) -> None:
    model = block()
    before = ir.to_proto(model).SerializeToString()
    integer, report = quantize_model(model, samples(), recipe, UNTIMED)
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    assert integer.metadata_props[RECIPE_PROPERTY] == recipe.name
    found = lines(report)
    assert set(found) == {*LAYERS, MIX}
    for name in LAYERS:
        assert (found[name].refused, found[name].ranges) == (None, recipe.activations.granularity)
        assert found[name].kernels in (("MatMulIntegerToFloat",), ("QLinearMatMul",))
        assert found[name].is_integer
    if recipe.attention.products == "integer":
        assert {"MatMulInteger"} <= set(found[MIX].kernels) <= {"MatMulInteger", "MatMulIntegerToFloat"}
        assert found[MIX].ranges == recipe.attention.granularity
    else:
        assert found[MIX].refused == f"recipe {recipe.name} leaves it in float"
    assert report.fallen == []
    assert 0 < report.outputs["y"].error.relative < most
    assert (report.float_bytes, report.integer_bytes) > (2500, 2500)  # of so few numbers mostly the graphs'
    assert json.loads(json.dumps(report.to_json()))["outputs"]["y"]["mean"] == report.outputs["y"].mean


ONE_LAYER = "g (float[N, 6, 8] x) => (float[N, 6, 16] y) { y = MatMul (x, w1) }"
ONE_ATTENTION = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    k = Transpose <perm = [0, 2, 1]> (x)
    s = MatMul (x, k)
    a = Softmax <axis = -1> (s)
    y = MatMul (a, x)
}"""


@pytest.mark.exact_products
@pytest.mark.parametrize("recipe", [BY_TOKEN, ALL_STATIC, BY_IMAGE, PACKED], ids=lambda recipe: recipe.name)
def test_an_operators_own_error_is_that_of_a_model_of_it_alone(recipe: Recipe) -> None:
    """In NumPy and by the graph; of attention, by two graphs."""
    of_layer = quantize_model(block(ONE_LAYER), samples(1), recipe, UNTIMED)[1]
    (line,) = of_layer.lines
    assert line.error is not None
    assert line.error.relative == pytest.approx(of_layer.outputs["y"].error.relative, rel=2e-3)
    assert line.error.sqnr == pytest.approx(-20 * np.log10(line.error.relative))
    if recipe.attention.products == "integer":
        of_attention = quantize_model(block(ONE_ATTENTION), samples(1), recipe, UNTIMED)[1]
        (line,) = of_attention.lines
        assert line.error == of_attention.outputs["y"].error


OF_CONSTANT_VALUES = """g (float[1, 6, 8] x) => (float[1, 6, 8] y) {
    k = Transpose <perm = [0, 2, 1]> (x)
    s = MatMul (x, k)
    a = Softmax <axis = -1> (s)
    y = MatMul (a, known)
}"""


@pytest.mark.exact_products
@pytest.mark.parametrize("recipe", [ALL_STATIC, BY_IMAGE], ids=lambda recipe: recipe.name)
def test_values_that_are_always_the_same_make_an_attention_and_no_linear_layer(recipe: Recipe) -> None:
    """As position encodings are in OneFormer's query transformer, at a fixed size."""
    known = np.random.default_rng(5).normal(size=(1, 6, 8)).astype(np.float32)
    integer, report = quantize_model(block(OF_CONSTANT_VALUES, known=known), samples(4), recipe, UNTIMED)
    (line,) = report.lines
    assert (line.kind, line.refused, line.is_integer) == ("attention", None, True)
    assert 0 < report.outputs["y"].error.relative < 0.03
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)


def test_what_the_recipe_leaves_and_what_cannot_be() -> None:
    recipe = replace(ALL_STATIC, layers={"h0": "float", "f": "token"})
    report = quantize_model(block(), samples(), recipe, UNTIMED)[1]
    found = lines(report)
    assert found["h0"].refused == "recipe static leaves it in float"
    assert found["f"].ranges == "token"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("recipe", [BY_TOKEN, ALL_STATIC, BY_IMAGE, LEAST_SQUARES], ids=lambda recipe: recipe.name)
def test_what_is_not_finite_stays_in_float(recipe: Recipe, bad: float) -> None:
    """In any place of any sample: NaN is neither the smallest nor the largest value."""
    given = samples(3)["x"]
    given[2, 4, 5] = bad
    report = quantize_model(block(), {"x": given}, recipe, UNTIMED)[1]
    assert lines(report)["q0"].refused == "its input is not finite on the samples, or beyond 1e+30"
    if recipe.attention.products == "integer":
        assert "its query, key or value is not finite" in str(lines(report)[MIX].refused)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_weight_that_is_not_finite_stays_in_float(bad: float) -> None:
    w1 = np.asarray(weights()["w1"]).copy()
    w1[3, 2] = bad
    report = quantize_model(block(ONE_LAYER, w1=w1), samples(), ALL_STATIC, UNTIMED)[1]
    assert [line.refused for line in report.lines] == ["its weight is not finite, or beyond 1e+30"]


SEQUENCE_FIRST = """g (float[N, 6, 8] x) => (float[N, 6, 16] y) {
    t = Transpose <perm = [1, 0, 2]> (x)
    m = MatMul (t, w1)
    y = Transpose <perm = [1, 0, 2]> (m)
}"""


@pytest.mark.exact_products
def test_a_batch_that_is_not_the_first_axis() -> None:
    """An image's range would take in all samples, so that tokens have their own; and the report says so."""
    integer, report = quantize_model(block(SEQUENCE_FIRST), samples(), BY_IMAGE, UNTIMED)
    assert report.lines[0].ranges == "token"
    assert report.notes[-1] == (
        'recipe by image: 1 layer has ranges by token instead of "image", since the first axis is not known to be the '
        "batch's"
    )
    batch = samples(2)["x"] * np.float32([1, 1000])[:, None, None]
    session = onnxruntime.InferenceSession(ir.to_proto(integer).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": batch})[0][:1], session.run(None, {"x": batch[:1]})[0])


HEADS_FIRST = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    h = Reshape (x, heads)
    q = Transpose <perm = [2, 0, 1, 3]> (h)
    k = Transpose <perm = [2, 0, 3, 1]> (h)
    s = MatMul (q, k)
    a = Softmax <axis = -1> (s)
    m = MatMul (a, q)
    t = Transpose <perm = [1, 2, 0, 3]> (m)
    y = Reshape (t, joined)
}"""


@pytest.mark.parametrize(("text", "told"), [(TEXT, False), (HEADS_FIRST, True)], ids=["apart", "together"])
def test_samples_that_change_each_other_are_told(text: str, told: bool) -> None:
    """Of attention whose first axis is that of heads, an image's range takes in the whole batch."""
    report = quantize_model(block(text), samples(), BY_IMAGE, UNTIMED)[1]
    assert any("samples of a batch change each other" in note for note in report.notes) == told


def test_names_that_passes_give_are_free() -> None:
    """A model with a `w1.scale` and a `w1.codes` of its own, and an integer model of ours made again."""
    text = """g (float[N, 6, 8] x) => (float[N, 6, 16] y, float[16] z) {
        y = MatMul (x, w1)
        c = Cast <to = 1> (w1.codes)
        z = Mul (c, w1.scale)
    }""".replace("w1.codes", "codes").replace("w1.scale", "scale")
    proto = block_proto(text, codes=np.ones(16, np.int8), scale=np.arange(16, dtype=np.float32))
    for name in ("codes", "scale"):
        for tensor in proto.graph.initializer:
            tensor.name = f"w1.{name}" if tensor.name == name else tensor.name
        for node in proto.graph.node:
            for i, given in enumerate(node.input):
                node.input[i] = f"w1.{name}" if given == name else given
    report = quantize_model(ir.from_proto(proto), samples(), ALL_STATIC, UNTIMED)[1]
    assert report.outputs["z"].largest == 0
    assert report.outputs["y"].error.relative < 0.02
    partly = replace(ALL_STATIC, layers={"h0": "float", "y": "float"})
    once, _ = quantize_model(block(), samples(), partly, UNTIMED)
    again, report = quantize_model(once, samples(), ALL_STATIC, UNTIMED)
    onnx.checker.check_model(ir.to_proto(again), full_check=True)
    assert {line.name for line in report.taken} == {"h0", "y"}
    assert report.outputs["y"].error.relative < 0.05


@pytest.mark.parametrize("bias", [np.ones(1, np.float32), np.float32(1)], ids=["one number", "a scalar"])
def test_a_bias_that_is_not_of_each_channel(bias: np.ndarray) -> None:
    text = "g (float[N, 8] x) => (float[N, 16] y) { h = MatMul (x, w1)\n y = Add (h, b) }"
    given = {"x": samples()["x"][:, 0]}
    report = quantize_model(block(text, b=bias), given, ALL_STATIC, UNTIMED)[1]
    assert (report.fallen, len(report.taken)) == ([], 1)
    assert report.outputs["y"].error.relative < 0.02


@pytest.mark.parametrize("behind", ["y = Relu (h)", "r = Relu (h)\n y = Add (r, x)", "y = Softmax <axis = -1> (h)"])
def test_whatever_is_behind_a_layer_it_is_integer(behind: str) -> None:
    text = f"g (float[N, 6, 8] x) => (float[N, 6, 8] y) {{ h = MatMul (x, wq)\n {behind} }}"
    report = quantize_model(block(text), samples(), ALL_STATIC, UNTIMED)[1]
    assert [line.kernels for line in report.lines] == [("MatMulIntegerToFloat",)]


@pytest.mark.exact_products
@pytest.mark.parametrize("recipe", [ALL_STATIC, BY_IMAGE, BY_TOKEN], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("shape", ["N, 6, 8", "N, 8"])
def test_layers_that_read_each_others_products(recipe: Recipe, shape: str) -> None:
    text = f"""g (float[{shape}] x) => (float[{shape}] y) {{
        h = MatMul (x, wq)
        i = MatMul (h, wk)
        y = Add (h, i)
    }}"""
    given = samples()["x"]
    report = quantize_model(block(text), {"x": given if "6" in shape else given[:, 0]}, recipe, UNTIMED)[1]
    assert (len(report.taken), report.fallen) == (2, [])
    assert report.outputs["y"].error.relative < 0.05


def test_outputs_of_other_shapes_are_named() -> None:
    text = """g (float[N, 6, 8] x) => (float[N, 6, 16] y, int64[3, M] z) {
        y = MatMul (x, w1)
        c = Cast <to = 6> (y)
        z = NonZero (c)
    }"""
    report = quantize_model(block(text), samples(), ALL_STATIC, UNTIMED)[1]
    assert "y" in report.outputs
    assert set(report.not_compared) <= {"z"}


def test_the_worst_come_first() -> None:
    """By what they cost the outputs, which is not what they lose themselves."""
    report = quantize_model(block(), samples(), ALL_STATIC, UNTIMED)[1]
    effects = [line.effect.relative for line in report.worst(3) if line.effect is not None]
    assert len(effects) == 3
    assert effects == sorted(effects, reverse=True)
    assert effects[0] == max(line.effect.relative for line in report.taken if line.effect is not None)
    assert len(report.worst(99)) == len(report.taken) == 8


def test_both_models_are_timed_in_turns() -> None:
    steps: list[str] = []
    options = QuantizeOptions(SessionOptions(threads=1), rounds=3, progress=steps.append)
    report = quantize_model(block(), 2, "static-w8a8", options)[1]
    assert report.speed is not None
    assert report.speed.rounds == 3
    assert report.speed.ratio.low < report.speed.ratio.mean < report.speed.ratio.high
    assert report.samples == "2 of random numbers"
    assert steps[0] == "running the model"
    assert steps[-1] == "timing"


def test_the_api_takes_files_and_gives_what_onnx_saves(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(block_proto(), path)
    np.savez(tmp_path / "samples.npz", **samples())
    of_file, report = nextscale.quantize(path, tmp_path / "samples.npz", BY_TOKEN, UNTIMED)  # type: ignore[operator]
    of_proto, _ = nextscale.quantize(block_proto(), samples(), BY_TOKEN, UNTIMED)  # type: ignore[operator]
    assert isinstance(of_file, onnx.ModelProto)
    assert of_file.SerializeToString() == of_proto.SerializeToString()
    assert report.samples == f"12 of {tmp_path / 'samples.npz'}"


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    onnx.save(block_proto(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    integer, _ = quantize_model(read_model(tmp_path / "model.onnx"), samples(), BY_TOKEN, UNTIMED)
    expected, _ = quantize_model(block(), samples(), BY_TOKEN, UNTIMED)
    assert [node.name for node in integer.graph] == [node.name for node in expected.graph]
    found, wanted = (
        {
            name: value.const_value.numpy().tobytes()
            for name, value in model.graph.initializers.items()
            if value.const_value
        }
        for model in (integer, expected)
    )
    assert found == wanted


def test_words_that_do_not_apply_are_told() -> None:
    recipe, words = foreign_recipe("default")
    assert recipe.activations.granularity == "tensor"
    assert recipe.layers == {}
    assert recipe.equalization.alpha > 0  # channels are evened out here, too
    assert words == ['recipe default: ranges by "pair" are for guided rows; a layer has one for all']
    assert foreign_recipe(BY_TOKEN) == (BY_TOKEN, [])


REFUSED = {
    "fp32": "recipe fp32: quantizes nothing; choose another, such as static-w8a8",
    "mine": 'no recipe is named "mine"',
}


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_that_are_not_for_such_models(name: str) -> None:
    with pytest.raises(NextscaleError) as error:
        quantize_model(block(), samples(), name, UNTIMED)
    assert REFUSED[name] in str(error.value)


def test_the_papers_recipe() -> None:
    """Rounding that is learned, shift-and-sum within its budget; and that nothing is resampled."""
    integer, report = quantize_model(block(), samples(), "ours-w6a6", UNTIMED)
    resampling, rounding = report.notes[-2:]
    assert resampling == "recipe ours-w6a6: samples are not resampled"
    whole = [block for block in report.blocks if block.kept == "block"]
    alone = 7 - sum(len(block.layers) for block in report.blocks if block.kept != "layers")
    assert len(report.blocks) == 2
    assert rounding.startswith(
        f"rounding was learned of {len(whole)} of 2 residual blocks as a whole (BRECQ); {alone} "
    )
    assert "alone (GPTQ)" in rounding
    assert report.fallen == []
    assert any("TopK" in str(node.op_type) for node in integer.graph)
    assert 0 < report.outputs["y"].error.relative < 0.5


def test_both_forms_of_shift_and_sum_give_the_same() -> None:
    given = {}
    for form in ("residual", "duplicate"):
        recipe = replace(BY_IMAGE, attention=AttentionRecipe("integer", "image", "log2", form, 0.2))  # type: ignore[arg-type]
        given[form] = quantize_model(block(), samples(), recipe, UNTIMED)[1].outputs["y"]
    plain = quantize_model(
        block(), samples(), replace(BY_IMAGE, attention=AttentionRecipe("integer", "image", "log2")), UNTIMED
    )[1].outputs["y"]
    assert given["residual"] == given["duplicate"] != plain


def test_a_budget_that_is_too_small() -> None:
    recipe = replace(BY_IMAGE, attention=AttentionRecipe("integer", "image", "log2", "residual", 1e-6))
    with pytest.raises(NextscaleError, match=r"a budget of 0\.00% is too small: the scores alone \(Eq\. 11\) cost"):
        quantize_model(block(), samples(), recipe, UNTIMED)


@pytest.mark.exact_products
def test_learned_rounding_is_nearer_than_to_nearest() -> None:
    """On samples that it did not see."""
    of_rule = {}
    for rounding in ("nearest", "reconstructed"):
        recipe = replace(BY_TOKEN, weights=WEIGHTS_4_BITS[rounding])
        integer, _ = quantize_model(block(), samples(200), recipe, UNTIMED)
        of_rule[rounding] = quantized_error(integer)
    assert of_rule["reconstructed"] < 0.8 * of_rule["nearest"]


WEIGHTS_4_BITS = {rounding: WeightRecipe(4, "mse", rounding) for rounding in ("nearest", "reconstructed")}  # type: ignore[arg-type]


def quantized_error(integer: ir.Model) -> float:
    """On other samples than those of calibration, relative."""
    other = samples(100, seed=5)["x"]
    exact, found = (
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": other}
        )[0]
        for proto in (block_proto(), ir.to_proto(integer))
    )
    return Error.of(exact, found).relative


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(NextscaleError, match=r'layers\."fc9" is not a linear layer of the model'):
        quantize_model(block(), samples(), replace(BY_TOKEN, layers={"fc9": "float"}), UNTIMED)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(NextscaleError) as error:
        quantize_model(read_model(path), 1, "static-w8a8", UNTIMED)
    assert "\n" not in str(error.value)


def test_errors_of_known_arrays() -> None:
    assert Error.of(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == Error(0.0, np.inf)
    assert Error.of(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == Error(0.1, pytest.approx(20.0))
    assert Error.of(np.zeros(2), np.ones(2)) == Error(np.inf, -np.inf)
    masked = np.array([np.nan, -np.inf, 4.0])
    assert Error.of(masked, np.array([np.nan, -np.inf, 4.4])) == Error(pytest.approx(0.1), pytest.approx(20.0))
    for other in ([0.0, -np.inf, 4.0], [np.nan, np.inf, 4.0], [np.nan, -np.inf, np.inf]):
        assert Error.of(masked, np.array(other)).relative == np.inf


def test_normalizing_alone_changes_little() -> None:
    report = quantize_model(block(), samples(), BY_TOKEN, UNTIMED)[1]
    assert report.normalized < 1e-5
    assert any("Gemm" in note for note in normalize(block()).notes)
    assert report.notes[: len(normalize(block()).notes)] == normalize(block()).notes
