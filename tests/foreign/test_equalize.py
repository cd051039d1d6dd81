"""Channels are evened out by the factors of SmoothQuant, where a norm's own numbers take them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.foreign.equalize import equalize
from nextscale.foreign.normalize import normalize
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model
from nextscale.foreign.samples import graph_inputs, read_samples
from nextscale.graph_passes.recipe import ActivationRecipe, EqualizationRecipe, Recipe
from nextscale.runtime._session import SessionOptions

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[np.generic]]
C, T = 6, 5
SESSION = SessionOptions(threads=1)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SPREAD = np.float32([1, 30, 0.2, 4, 1, 0.05])
WEIGHTS: Arrays = {
    "gamma": SPREAD * np.float32([1, 1, -1, 1, -1, 1]),
    "beta": normal(C, seed=1) * np.float32(0.3),
    "w1": normal(C, 7, seed=2),
    "w2": normal(C, 3, seed=3) * np.float32([3, 1, 1, 0.1, 1, 1])[:, None],
    "number": np.float32(2),
    "column": normal(T, 1, seed=4),
}
X = normal(8, T, C, seed=5)


def model(body: str, outputs: str = "float[N, 5, 7] y", opset: int = 21, **arrays: NDArray[np.generic]) -> ir.Model:
    graph = parser.parse_graph(f"g (float[N, {T}, {C}] x) => ({outputs}) {{ {body} }}")
    read = {name for node in graph.node for name in node.input}
    read |= {name for node in graph.node for a in node.attribute for inner in a.g.node for name in inner.input}
    for name, array in (WEIGHTS | arrays).items():
        if name in read:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.output[0]
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.name = inner.output[0]
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def run(built: ir.Model, x: Floats, **further: NDArray[np.generic]) -> list[Floats]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        ir.to_proto(built).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Floats] = session.run(None, {"x": x, **further})
    return found


def evened(built: ir.Model, tmp_path: Path, alpha: float = 0.5, x: Floats = X) -> tuple[ir.Model, int]:
    normalized = normalize(built).model
    return equalize(normalized, alpha, read_samples({"x": x}, graph_inputs(normalized.graph)), tmp_path, SESSION)


def numbers(built: ir.Model, node: str, i: int) -> Floats:
    value = next(found for found in built.graph if found.name == node).inputs[i]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def factors(magnitude: Floats, *weights: Floats, alpha: float = 0.5) -> NDArray[np.float64]:
    """SmoothQuant, Eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), brought to a geometric mean of 1."""
    reading = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0).astype(np.float64)
    raw = magnitude.astype(np.float64) ** alpha / reading ** (1 - alpha)
    found: NDArray[np.float64] = np.clip(raw / np.exp(np.log(raw).mean()), 1 / 64, 64)
    return found


LAYER_NORM = "l = LayerNormalization <axis = -1> (x, gamma, beta)"
MUL_ADD = """n = LpNormalization <axis = -1> (x)
    m = Mul (n, gamma)
    l = Add (m, beta)"""
MUL = """q = Mul (x, x)
    v = ReduceMean <keepdims = 1> (q, last)
    r = Sqrt (v)
    n = Div (x, r)
    l = Mul (gamma, n)"""
MAKERS: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "LayerNormalization": (LAYER_NORM, [("l", 1), ("l", 2)]),
    "LayerNormalization without bias": (LAYER_NORM.replace(", beta", ""), [("l", 1)]),
    "Mul and Add": (MUL_ADD, [("m", 1), ("l", 1)]),
    "Mul and Add, the other way round": (
        MUL_ADD.replace("n, gamma", "gamma, n").replace("m, beta", "beta, m"), [("m", 0), ("l", 0)],
    ),
    "Mul alone": (MUL, [("l", 0)]),
}  # fmt: skip
LAST = {"last": np.array([-1])}


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", MAKERS)
def test_the_function_stays_and_the_factors_are_smoothquants(name: str, alpha: float, tmp_path: Path) -> None:
    maker, places = MAKERS[name]
    body = f"{maker} y = MatMul (l, w1) z = MatMul (l, w2)"
    outputs = "float[N, 5, 7] y, float[N, 5, 3] z"
    built = model(body, outputs, **LAST)
    before = ir.to_proto(built).SerializeToString()
    made, count = evened(built, tmp_path, alpha)
    assert (count, ir.to_proto(built).SerializeToString()) == (1, before)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    other = normal(4, T, C, seed=9)
    for found, exact in zip(run(made, other), run(built, other), strict=True):
        # Factors to 64 of rounded numbers: what each product is off stays a few units in its last place.
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    read = run(model(f"{maker} y = Identity (l)", **LAST), X)[0]
    expected = factors(np.abs(read).max(axis=(0, 1)), np.asarray(WEIGHTS["w1"]), np.asarray(WEIGHTS["w2"]), alpha=alpha)
    assert expected.max() > 2  # or the test could not fail
    for node, weight in (("y", "w1"), ("z", "w2")):
        np.testing.assert_allclose(numbers(made, node, 1), np.asarray(WEIGHTS[weight]) * expected[:, None], rtol=1e-4)
    for (node, i), row in zip(places, ("gamma", "beta"), strict=False):
        np.testing.assert_allclose(numbers(made, node, i), np.asarray(WEIGHTS[row]) / expected, rtol=1e-4, atol=1e-8)


def test_channels_are_nearer_each_other_then(tmp_path: Path) -> None:
    built = model(f"{LAYER_NORM} y = MatMul (l, w1)")
    made, _ = evened(built, tmp_path)
    spreads = []
    for of in (normalize(built).model, made):
        proto = ir.to_proto(of)
        proto.graph.output.append(helper.make_tensor_value_info("l", onnx.TensorProto.FLOAT, ["N", T, C]))
        largest = np.abs(run(ir.from_proto(proto), X)[1]).max(axis=(0, 1))
        spreads.append(float(largest.max() / largest.min()))
    assert spreads[1] < spreads[0] / 5


def test_a_channel_that_is_always_zero(tmp_path: Path) -> None:
    """Its factor is the mean of the others', and no number becomes infinite."""
    gamma, beta = (np.asarray(WEIGHTS[name]).copy() for name in ("gamma", "beta"))
    gamma[3] = beta[3] = 0
    built = model(f"{LAYER_NORM} y = MatMul (l, w1)", gamma=gamma, beta=beta)
    made, count = evened(built, tmp_path)
    assert count == 1
    np.testing.assert_allclose(run(made, X)[0], run(built, X)[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(numbers(made, "y", 1)[3], np.asarray(WEIGHTS["w1"])[3], rtol=1e-4)
    assert (numbers(made, "l", 1)[3], numbers(made, "l", 2)[3]) == (0, 0)


NOT: dict[str, str] = {
    "another reads it": f"{LAYER_NORM} h = MatMul (l, w1) s = ReduceMax <keepdims = 0> (l) y = Add (h, s)",
    "a layer reads it from the right": f"{LAYER_NORM} h = MatMul (l, w1) t = MatMul (w3, l) "
    "s = ReduceMax <keepdims = 0> (t) y = Add (h, s)",
    "what is between is read": f"{MUL_ADD} h = MatMul (l, w1) s = ReduceMax <keepdims = 0> (m) y = Add (h, s)",
    "a weight that two layers share": f"{LAYER_NORM} h = MatMul (l, w1) i = MatMul (x, w1) y = Add (h, i)",
    "a weight that another reads": f"{LAYER_NORM} h = MatMul (l, w1) e = ReduceMax <keepdims = 0> (x) f = Mul (w1, e) "
    "s = ReduceMax <keepdims = 0> (f) y = Add (h, s)",
    "a factor that is one number": "l = Mul (x, number) y = MatMul (l, w1)",
    "a factor of rows": "l = Mul (x, column) y = MatMul (l, w1)",
    "a summand alone": "l = Add (x, beta) y = MatMul (l, w1)",
    "a sum of two": "a = Mul (x, gamma) b = Sigmoid (x) l = Add (a, b) y = MatMul (l, w1)",
    "an activation": "n = Mul (x, gamma) l = Relu (n) y = MatMul (l, w1)",
    "an input of the model": "y = MatMul (x, w1)",
    "a division": "l = Div (x, gamma) y = MatMul (l, w1)",
}


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_evened_out(name: str, tmp_path: Path) -> None:
    built = model(NOT[name], w3=normal(T, T, seed=6))
    made, count = evened(built, tmp_path)
    assert count == 0
    # Each pass on its own copy; that of the normalization is deterministic.
    assert ir.to_proto(made).SerializeToString() == ir.to_proto(normalize(built).model).SerializeToString()


@pytest.mark.parametrize("output", ["l", "m"])
def test_an_output_of_the_model_stays(output: str, tmp_path: Path) -> None:
    outputs = f"float[N, 5, 7] y, float[N, {T}, {C}] {output}"
    made, count = evened(model(f"{MUL_ADD} y = MatMul (l, w1)", outputs), tmp_path)
    assert count == 0
    assert [value.name for value in made.graph.outputs] == ["y", output]


def test_numbers_that_others_read_stay_for_them(tmp_path: Path) -> None:
    """Two norms of one gamma and one beta, of which one feeds a Relu."""
    body = f"""{LAYER_NORM} h = MatMul (l, w1)
    k = LayerNormalization <axis = -1> (x, gamma, beta)
    r = Relu (k)
    i = MatMul (r, w4)
    y = Add (h, i)"""
    built = model(body, w4=normal(C, 7, seed=8))
    made, count = evened(built, tmp_path)
    assert count == 1
    np.testing.assert_array_equal(numbers(made, "k", 1), WEIGHTS["gamma"])
    np.testing.assert_array_equal(numbers(made, "k", 2), WEIGHTS["beta"])
    exact = run(built, X)[0]
    np.testing.assert_allclose(run(made, X)[0], exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    x = X.copy()
    x[3, 2, 1] = bad
    built = model("l = Mul (x, gamma) y = MatMul (l, w1)")
    made, count = evened(built, tmp_path, x=x)
    assert count == (0 if bad == np.inf else 1)  # what is no number is neither large nor small
    np.testing.assert_allclose(run(made, X)[0], run(built, X)[0], rtol=0, atol=1e-3)


def test_a_weight_that_is_not_finite_stays(tmp_path: Path) -> None:
    weight = np.asarray(WEIGHTS["w1"]).copy()
    weight[2, 2] = np.inf
    assert evened(model(f"{LAYER_NORM} y = MatMul (l, w1)", w1=weight), tmp_path)[1] == 0


def test_a_norm_and_a_layer_in_a_subgraph_stay(tmp_path: Path) -> None:
    """Calibration does not see what is there."""
    built = model(
        f"""s = ReduceMax <keepdims = 0> (x)
        b = Greater (s, number)
        y = If (b) <
            then_branch = yes () => (float[N, 5, 7] u) {{ {LAYER_NORM} u = MatMul (l, w1) }},
            else_branch = no () => (float[N, 5, 7] v) {{ v = MatMul (x, w5) }}
        >""",
        w5=normal(C, 7, seed=7),
    )
    made, count = evened(built, tmp_path)
    assert count == 0
    np.testing.assert_array_equal(run(made, X)[0], run(built, X)[0])


@pytest.mark.exact_products
def test_a_recipes_word_and_what_it_is_good_for() -> None:
    """The report says how many inputs were evened out; and one range for all channels loses less then."""
    built = model(f"{LAYER_NORM} h = MatMul (l, w1) y = Tanh (h)", w1=normal(C, 7, seed=2) / SPREAD[:, None])
    errors = {}
    for alpha in (0.0, 0.5):
        recipe = Recipe(
            "mine", activations=ActivationRecipe(granularity="tensor"), equalization=EqualizationRecipe(alpha)
        )
        _, report = quantize_model(built, {"x": X}, recipe, QuantizeOptions(SESSION, rounds=0))
        errors[alpha] = report.outputs["y"].error.relative
        assert any("1 input" in note and "evened out" in note for note in report.notes) == (alpha > 0)
    assert errors[0.5] < 0.5 * errors[0.0]
