"""Convolutions of foreign models: taken, or with the reason why not; left in float by recipe or by what they cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nextscale.foreign.normalize import normalize
from nextscale.foreign.own_errors import Error
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model
from nextscale.foreign.report import Line, Report
from nextscale.foreign.survey import survey
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    EqualizationRecipe,
    Recipe,
    load_recipe,
)
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

from .convolution_net import CONVOLUTIONS, RESULTS, TEXT, Arrays, net, net_proto, pictures, weights

UNTIMED = QuantizeOptions(SessionOptions(threads=1), rounds=0)
STATIC = Recipe("static", activations=ActivationRecipe(granularity="tensor"))
BY_TOKEN = Recipe("by token", activations=ActivationRecipe(granularity="token"))


def lines(report: Report) -> dict[str, Line]:
    return {line.name: line for line in report.lines}


def session_of(proto: onnx.ModelProto, written: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if written is not None:
        options.optimized_model_filepath = str(written)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(found - exact).sum() / np.square(exact).sum()))


@pytest.mark.exact_products
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_network_of_them(alpha: float, tmp_path: Path) -> None:
    model = net()
    before = ir.to_proto(model).SerializeToString()
    recipe = replace(STATIC, equalization=EqualizationRecipe(alpha))
    given = pictures(48)
    integer, report = quantize_model(model, given, recipe, UNTIMED)
    assert ir.to_proto(model).SerializeToString() == before
    proto = ir.to_proto(integer)
    onnx.checker.check_model(proto, full_check=True)
    found = lines(report)
    assert [line.name for line in report.lines] == [*CONVOLUTIONS, "y0"]
    for name in CONVOLUTIONS:
        assert found[name] == replace(
            found[name], kind="convolution", ranges="tensor", refused=None, kernels=("QLinearConv",), is_integer=True
        )
        assert found[name].error is not None
        assert 0 < found[name].error.relative < 0.05
    assert any("went into a convolution" in note for note in report.notes)
    session_of(proto, tmp_path / "optimized.onnx")
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (kernels["QLinearConv"], kernels["Conv"], kernels["FusedConv"]) == (5, 0, 0)
    # Of the results, those of b and e and one that is added to b's become floats.
    assert {node.outputs[0].name for node in integer.graph} & {*RESULTS} == {"s", "b", "e"}
    other = pictures(16, seed=7)
    exact, made = (session_of(of).run(None, other)[0] for of in (net_proto(), proto))
    assert 0 < relative(made, exact) < 0.05
    (output,) = report.outputs.values()
    exact, made = (session_of(of).run(None, given)[0] for of in (net_proto(), proto))
    assert output.error.relative == pytest.approx(relative(made, exact), rel=1e-3)


REFUSED: dict[str, tuple[str, Arrays, str]] = {
    "its result is an output": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { y = Conv (x, ws) }",
        {}, "its result is an output of the model, which 8 bits would be too few for",
    ),
    "its Relu is an output": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { c = Conv (x, ws) y = Relu (c) }",
        {}, "its result is an output of the model, which 8 bits would be too few for",
    ),
    "patches": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 2, 2] y) { c = Conv <strides = [4, 4]> (x, w) y = Tanh (c) }",
        {"w": np.ones((8, 3, 4, 4), np.float32)},
        "it embeds patches: little work, whose error would stay in all that follows",
    ),
    "a weight that is computed": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) "
        "{ m = ReduceMax <keepdims = 0> (x) w = Mul (ws, m) c = Conv (x, w) y = Tanh (c) }",
        {}, "its weight or bias is computed",
    ),
    "a bias that is computed": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) "
        "{ m = ReduceMax <keepdims = 0> (x) b = Mul (shift, m) c = Conv (x, ws, b) y = Tanh (c) }",
        {}, "its weight or bias is computed",
    ),
    "a weight behind DequantizeLinear": (
        "g (float[N, 3, 8, 8] x, float s) => (float[N, 8, 6, 6] y) "
        "{ w = DequantizeLinear (codes, s) c = Conv (x, w) y = Tanh (c) }",
        {"codes": np.ones((8, 3, 3, 3), np.int8)}, "it is quantized already",
    ),
    "not finite": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { c = Conv (x, w) y = Tanh (c) }",
        {"w": np.full((8, 3, 3, 3), np.inf, np.float32)}, "its weight or bias is not finite, or beyond 1e+30",
    ),
    "a bias that is not finite": (
        "g (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { c = Conv (x, ws, b) y = Tanh (c) }",
        {"b": np.full(8, np.nan, np.float32)}, "its weight or bias is not finite, or beyond 1e+30",
    ),
    "float64": (
        "g (double[N, 3, 8, 8] x) => (double[N, 8, 6, 6] y) { c = Conv (x, w) y = Neg (c) }",
        {"w": np.ones((8, 3, 3, 3))}, "its weight or bias is double, not float32",
    ),
    "a constant input": (
        "g (float[N, 3] x) => (float[N, 3] y) { i = Relu (wb) c = Conv (wb, k) s = ReduceSum <keepdims = 0> (c) "
        "y = Mul (x, s) }",
        {"k": np.ones((2, 16, 1, 1), np.float32)}, "its input is a constant, too",
    ),
    "transposed": (
        "g (float[N, 3, 8, 8] x) => (float[N, 2, 10, 10] y) { c = ConvTranspose (x, w) y = Tanh (c) }",
        {"w": np.ones((3, 2, 3, 3), np.float32)},
        "ConvTranspose that became no Conv: 10.8 multiplications for each number that it reads or gives: "
        "less work than to move these",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_has_a_reason(name: str) -> None:
    text, further, reason = REFUSED[name]
    normalized = normalize(net(text, **further)).model
    if name == "a constant input":  # which constants' folding would take
        normalized = ir.from_proto(net_proto(text.replace("i = Relu (wb) ", ""), **further))
    found = [item for item in survey(normalized).found if item.kind == "convolution"]
    assert [item.refused for item in found] == [reason]


TAKEN = {
    "a kernel of one place with strides": ("strides = [2, 2]", (8, 3, 1, 1)),
    "strides of another size": ("strides = [2, 2]", (8, 3, 3, 3)),
    "no strides": ("pads = [1, 1, 1, 1]", (8, 3, 3, 3)),
    "oblong": ("strides = [4, 2]", (8, 3, 2, 4)),
    "groups": ("group = 3", (9, 1, 3, 3)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name: str) -> None:
    how, shape = TAKEN[name]
    text = f"g (float[N, 3, 8, 8] x) => (float[N, C, A, B] y) {{ c = Conv <{how}> (x, w) y = Tanh (c) }}"
    (item,) = survey(normalize(net(text, w=np.ones(shape, np.float32))).model).found
    assert (item.name, item.kind, item.refused) == ("c", "convolution", None)


def test_one_in_a_subgraph_and_one_that_a_subgraph_alone_reads() -> None:
    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], 1, None)])

    def of(then: onnx.NodeProto) -> ir.Model:
        other = branch("other", helper.make_node("Tanh", ["c"], ["b"], "tanh"))
        nodes = [
            helper.make_node("Conv", ["x", "ws"], ["c"], "c"),
            helper.make_node("If", ["t"], ["y"], "if", then_branch=branch("then", then), else_branch=other),
        ]
        inputs = [
            helper.make_tensor_value_info("t", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8]),
        ]
        arrays = [onnx.numpy_helper.from_array(np.asarray(weights()["ws"]), "ws")]
        graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)], arrays)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    found = survey(normalize(of(helper.make_node("Conv", ["x", "ws"], ["a"], "inner"))).model).found
    assert {item.name: item.refused for item in found} == {
        "c": "its result is read in a subgraph alone, which calibration does not see",
        "inner": "in a subgraph, which calibration does not see",
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_on_the_samples_stays(bad: float) -> None:
    given = pictures()["x"]
    given[3, 1, 2, 2] = bad
    report = quantize_model(net(), {"x": given}, STATIC, UNTIMED)[1]
    assert lines(report)["s0"].refused == "its input or its result is not finite on the samples, or beyond 1e+30"


def test_a_result_that_is_not_finite_on_the_samples() -> None:
    """Nor are the inputs of all that reads it, up to the Tanh."""
    report = quantize_model(net(wd=np.full((12, 8, 3, 3), 9e29, np.float32)), pictures(), STATIC, UNTIMED)[1]
    found = {name: line.refused for name, line in lines(report).items()}
    not_finite = "is not finite on the samples, or beyond 1e+30"
    assert found == {"s0": None, "a0": None, "b": None, "d0": f"its input or its result {not_finite}",
                     "e": f"its input or its result {not_finite}", "y0": f"its input {not_finite}"}  # fmt: skip


def test_a_recipes_layers_name_convolutions_and_layers() -> None:
    recipe = replace(STATIC, layers={"a0": "float", "y0": "token", "d0": "float"})
    integer, report = quantize_model(net(), pictures(), recipe, UNTIMED)
    found = lines(report)
    for name in ("a0", "d0"):
        assert (found[name].refused, found[name].kernels) == ("recipe static leaves it in float", ())
    assert (found["s0"].refused, found["b"].refused, found["y0"].ranges) == (None, None, "token")
    floats = [node for node in integer.graph if node.op_type == "Conv" and node.inputs[1].const_value is not None]  # type: ignore[union-attr]
    assert [node.name for node in floats] == ["a0", "d0"]


def test_a_recipe_file_names_a_convolution(tmp_path: Path) -> None:
    """By the end of its name, in a model of convolutions alone."""
    path = tmp_path / "mine.toml"
    path.write_text('[activations]\ngranularity = "token"\n[layers]\n"first/Conv" = "float"\n')
    text = """g (float[N, 3, 8, 8] x) => (float[N, C, A, B] y) {
        c = Conv (x, ws)
        h = Relu (c)
        d = Conv (h, wd)
        y = Tanh (d)
    }"""
    renamed = {"node:c": "/net/first/Conv", "node:d": "/net/second/Conv"}
    report = quantize_model(net(text, renamed), pictures(), load_recipe(str(path)), UNTIMED)[1]
    assert [line.refused for line in report.lines] == ["recipe mine leaves it in float", None]


def test_a_recipe_that_names_what_is_not_there() -> None:
    with pytest.raises(NextscaleError, match=r'layers\."fc9" is not') as error:
        quantize_model(net(), pictures(), replace(STATIC, layers={"fc9": "float"}), UNTIMED)
    assert "s0" in str(error.value)


def errors_of(report: Report) -> dict[str, float]:
    return {line.name: line.effect.relative for line in report.lines if line.effect is not None}


@pytest.mark.exact_products
def test_what_costs_most_is_left_where_that_is_asked_for() -> None:
    """One after the other, and the output's error falls each time, to nothing once all are left."""
    costs = errors_of(quantize_model(net(), pictures(), STATIC, UNTIMED)[1])
    ordered = sorted(costs, key=lambda name: -costs[name])
    assert set(ordered) == {*CONVOLUTIONS, "y0"}
    lost = []
    for leave in (0, 1, 3, 6, 9):
        integer, report = quantize_model(net(), pictures(), STATIC, replace(UNTIMED, leave=leave))
        found, count = lines(report), min(leave, 6)
        lost.append(report.outputs["y"].error.relative)
        assert {name for name, line in found.items() if line.refused is not None} == set(ordered[:count])
        for name in ordered[:count]:
            assert str(found[name].refused).startswith("left in float, as ")
            assert "cost the outputs most" in str(found[name].refused)
            assert errors_of(report)[name] == pytest.approx(costs[name])  # what it would cost is still told
        assert all(found[name].is_integer for name in ordered[count:])
        onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    assert lost[:4] == sorted(lost[:4], reverse=True)
    assert lost[1] < lost[0]
    assert lost[3] == lost[4] < 1e-6


def test_what_a_recipe_leaves_is_not_counted() -> None:
    costs = errors_of(quantize_model(net(), pictures(), STATIC, UNTIMED)[1])
    worst = max(costs, key=lambda name: costs[name])
    recipe = replace(STATIC, layers={worst: "float"})
    report = quantize_model(net(), pictures(), recipe, replace(UNTIMED, leave=1))[1]
    reasons = [str(line.refused) for line in report.lines if line.refused is not None]
    assert sorted(reason.split(",")[0] for reason in reasons) == ["left in float", "recipe static leaves it in float"]


def test_attention_is_never_left() -> None:
    """A recipe cannot leave one of several."""
    from .block_model import MIX, block, samples

    recipe = Recipe(
        "static", activations=ActivationRecipe(granularity="tensor"), attention=AttentionRecipe("integer", "tensor")
    )
    report = quantize_model(block(), samples(), recipe, replace(UNTIMED, leave=99))[1]
    assert [line.name for line in report.taken] == [MIX]


@pytest.mark.exact_products
def test_a_suggestion_holds_what_it_says() -> None:
    """With its lines in a recipe the outputs lose what it says they do."""
    given = pictures()
    report = quantize_model(net(), given, STATIC, UNTIMED)[1]
    assert report.suggestion is not None
    names = report.suggestion.names
    costs = errors_of(report)
    assert list(names) == sorted(costs, key=lambda name: -costs[name])[: len(names)]
    followed = quantize_model(net(), given, replace(STATIC, layers=dict.fromkeys(names, "float")), UNTIMED)[1]
    expected = followed.outputs["y"].error.relative
    assert report.suggestion.outputs["y"].error.relative == pytest.approx(expected, rel=1e-6)
    assert expected < report.outputs["y"].error.relative
    assert report.suggestion.ratio is None


DIRECT = """g (float[N, 6, 10] x) => (float[N, 8, 16] y) {
    c = Conv <pads = [1, 1]> (x, w, b)
    y = MatMul (c, m)
}"""


@pytest.mark.exact_products
@pytest.mark.parametrize("recipe", [STATIC, BY_TOKEN, load_recipe("rtn-w8a8")], ids=lambda recipe: recipe.name)
def test_a_linear_layer_that_reads_a_convolution_itself(recipe: Recipe) -> None:
    """Its ranges take in all channels, whose first is small beside the others here, and never below zero."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 6, 3)).astype(np.float32)
    w[0] *= 0.01
    further = {"w": w, "b": np.eye(8, dtype=np.float32)[0], "m": rng.normal(size=(10, 16)).astype(np.float32)}
    x = rng.normal(size=(12, 6, 10)).astype(np.float32)
    report = quantize_model(net(DIRECT, **further), {"x": x}, recipe, UNTIMED)[1]
    assert {line.name: line.refused for line in report.lines} == {"c": None, "y": None}
    assert report.outputs["y"].error.relative < 0.05
    c = session_of(net_proto(DIRECT.replace("y = MatMul (c, m)", "y = Identity (c)"), **further)).run(None, {"x": x})[0]
    text = "g (float[N, 8, 10] c) => (float[N, 8, 16] y) { y = MatMul (c, m) }"
    alone = quantize_model(net(text, m=further["m"]), {"c": c}, recipe, UNTIMED)[1]
    expected, found = (lines(of)["y"].error for of in (alone, report))
    assert expected is not None
    assert found is not None
    assert found.relative == pytest.approx(expected.relative, rel=1e-3)


SELF_ATTENTION = """g (float[N, 6, 10] x) => (float[N, 10, 10] y) {
    q0 = Conv (x, wq)
    k = Conv (x, wk)
    v0 = Conv (x, wv)
    q = Transpose <perm = [0, 2, 1]> (q0)
    v = Transpose <perm = [0, 2, 1]> (v0)
    s = MatMul (q, k)
    a = Softmax <axis = -1> (s)
    o = MatMul (a, v)
    y = Tanh (o)
}"""


@pytest.mark.exact_products
@pytest.mark.parametrize("granularity", ["tensor", "image"])
def test_attention_that_reads_a_convolution_itself(granularity: str) -> None:
    """The keys' first channel is small beside the others."""
    rng = np.random.default_rng(1)
    wk = rng.normal(size=(8, 6, 1)).astype(np.float32) * np.float32(0.3)
    wk[0] *= 0.01
    further = {"wq": rng.normal(size=(8, 6, 1)).astype(np.float32) * np.float32(0.3), "wk": wk,
               "wv": rng.normal(size=(10, 6, 1)).astype(np.float32)}  # fmt: skip
    recipe = replace(STATIC, attention=AttentionRecipe("integer", granularity))  # type: ignore[arg-type]
    x = {"x": rng.normal(size=(12, 6, 10)).astype(np.float32)}
    report = quantize_model(net(SELF_ATTENTION, **further), x, recipe, UNTIMED)[1]
    assert {line.name: line.refused for line in report.lines} == dict.fromkeys(["q0", "k", "v0", "o"])
    assert report.outputs["y"].error.relative < 0.05


# Names of what a pass makes, taken by the model for other things.
NAMES: dict[str, dict[str, str]] = {
    "codes of the input": {"s": "x/convolution.codes", "r": "x/convolution.scale"},
    "constants of a weight": {"wd": "s0.weight.codes", "bd": "s0.weight.scale", "wy": "s0.bias.codes"},
    "a weight named after another's node": {"wy": "s0.weight", "ws": "d0.bias", "bd": "a0.weight"},
    "a convolution named after a layer's weight": {"node:s0": "wy", "wy": "wy.weight"},
    "what is exact": {"p0": "s.exact", "a0": "b.exact", "r": "d.exact"},
    "what is known": {"s": "known", "r": "known/known.known", "a": "known/known"},
    "nodes": {"node:r": "x/convolution/quantize", "node:p0": "s0.input/dequantize", "node:d": "s/known/dequantize"},
    "an input's": {"s": "s0.input.scale", "a": "s0.input.known", "b": "a0.input"},
    "what is added": {"s": "y0.added", "r": "s.added", "p0": "y0.alone", "node:p0": "y0/add"},
    "what is alone": {"s": "a0.alone", "a": "a.added"},
    "a result": {"s": "s0.result", "a": "a0.result", "b": "b.result"},
    "what is folded": {"wa": "ws.folded", "s": "bias.folded"},
}


@pytest.fixture(scope="module")
def plain() -> tuple[ir.Model, Report]:
    """The network by its own names."""
    return quantize_model(net(), pictures(4), STATIC, UNTIMED)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_passes_give_are_free(name: str, plain: tuple[ir.Model, Report]) -> None:
    """The model computes the same whatever its values and nodes are called."""
    integer, report = quantize_model(net(renamed=NAMES[name]), pictures(4), STATIC, UNTIMED)
    assert (len(report.taken), report.fallen) == (6, [])
    onnx.checker.check_model(ir.to_proto(integer), full_check=True)
    given = pictures(4, seed=3)
    found, wanted = (session_of(ir.to_proto(of)).run(None, given)[0] for of in (integer, plain[0]))
    np.testing.assert_array_equal(found, wanted)
    assert [line.effect for line in report.lines] == [line.effect for line in plain[1].lines]


@pytest.mark.exact_products
def test_an_integer_model_of_ours_made_again() -> None:
    """What is integer already is not taken twice, and the names do not clash."""
    partly = replace(STATIC, layers={"a0": "float", "y0": "float"})
    once, _ = quantize_model(net(), pictures(48), partly, UNTIMED)
    again, report = quantize_model(once, pictures(48), STATIC, UNTIMED)
    onnx.checker.check_model(ir.to_proto(again), full_check=True)
    assert {line.name for line in report.taken} == {"a0", "y0"}
    given = pictures(4, seed=3)
    exact, found = (session_of(of).run(None, given)[0] for of in (net_proto(), ir.to_proto(again)))
    assert relative(found, exact) < 0.05


@pytest.mark.exact_products
def test_channels_last_and_reshaped_between() -> None:
    """Codes go through what only moves numbers; the optimized graph gives what the plain one does."""
    text = """g (float[N, 3, 8, 8] x) => (float[N, 36, 3] y) {
        c = Conv (x, ws)
        r = Reshape (c, shape)
        t = Transpose <perm = [0, 2, 1]> (r)
        l = MatMul (t, wl)
        y = Tanh (l)
    }"""
    rng = np.random.default_rng(2)
    further: Arrays = {"shape": np.array([0, 8, 36]), "wl": rng.normal(size=(8, 3)).astype(np.float32)}
    integer, report = quantize_model(net(text, **further), pictures(), STATIC, UNTIMED)
    assert (len(report.taken), report.fallen) == (2, [])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    serialized = ir.to_proto(integer).SerializeToString()
    plain = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"]).run(None, pictures())
    np.testing.assert_allclose(session_of(ir.to_proto(integer)).run(None, pictures())[0], plain[0], atol=1e-5)
    assert report.outputs["y"].error.relative < 0.05


def test_a_text_of_all_that_stays_is_untouched() -> None:
    """With everything left in float by the recipe, the numbers are those of the normalized model."""
    recipe = replace(STATIC, layers=dict.fromkeys([*CONVOLUTIONS, "y0"], "float"))
    integer, report = quantize_model(net(), pictures(), recipe, UNTIMED)
    assert report.taken == []
    assert report.suggestion is None
    given = pictures(2, seed=5)
    found, exact = (session_of(of).run(None, given)[0] for of in (ir.to_proto(integer), net_proto(TEXT)))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    assert isinstance(report.outputs["y"].error, Error)
