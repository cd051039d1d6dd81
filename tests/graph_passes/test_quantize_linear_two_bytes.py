"""Structure, refusals, idempotence, checker, numerics against integer arithmetic, random shapes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes.linear_layers import linear_layers, nearest
from nextscale.graph_passes.qparams import QuantizedWeight
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_two_bytes import quantize_linear_two_bytes

Floats = NDArray[np.float32]
LAYERS = ("a", "b")
K, N = 16, 24


def layers_model(weights: dict[str, Floats]) -> ir.Model:
    """y_a = x a + bias; y_b = x b."""
    k, n = weights["a"].shape
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    x = builder.input("x", ir.DataType.FLOAT, ["R", "l", k])
    for name in LAYERS:
        y = op.MatMul(x, constants(f"{name}.weight", weights[name]), _name=name)
        y = op.Add(y, constants("bias", weights["bias"])) if name == "a" else y
        add_output(builder, y, f"y_{name}", ir.DataType.FLOAT, ["R", "l", n])
    return finish(builder)


def random_weights(rng: np.random.Generator, k: int = K, n: int = N) -> dict[str, Floats]:
    weights = {name: rng.normal(0, k**-0.5, (k, n)).astype(np.float32) for name in LAYERS}
    return weights | {"bias": rng.normal(size=n).astype(np.float32)}


@pytest.fixture
def weights() -> dict[str, Floats]:
    return random_weights(np.random.default_rng(0))


@pytest.fixture
def x() -> Floats:
    """Each token has a value that is a hundred times as large as the others."""
    rng = np.random.default_rng(1)
    x = rng.normal(0.3, 1, (4, 5, K))
    x[..., 3] *= 100
    return x.astype(np.float32)


def two_bytes(model: ir.Model, weight_bits: int = 8, packed: bool = False) -> ir.Model:
    return quantize_linear_two_bytes(model, LAYERS, nearest(weight_bits), packed)


def run(model: ir.Model, x: Floats) -> list[Floats]:
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs: list[Floats] = session.run(None, {"x": x})
    return outputs


def codes(x: Floats, scale: Floats) -> NDArray[np.int64]:
    return np.clip(np.round(x / scale) + 128, 0, 255).astype(np.int64)


def two_codes(x: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Codes, fine codes and scales, each step in the graph's float32."""
    high, low = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
    scale = np.maximum(np.maximum(high / np.float32(127), -low / np.float32(128)), np.float32(2.0**-100))
    coarse = codes(x, scale)
    left = x - (coarse - 128).astype(np.float32) * scale
    return coarse, codes(left, scale / np.float32(128)), scale


def assert_integer_arithmetic(x: Floats, weights: dict[str, Floats], weight_bits: int = 8) -> None:
    coarse, fine, scale = two_codes(x)
    for name, y in zip(LAYERS, run(two_bytes(layers_model(weights), weight_bits), x), strict=True):
        quantized = QuantizedWeight.per_channel(weights[name], 1, weight_bits)
        integers, scales = quantized.codes.astype(np.int64), scale.astype(np.float64) * quantized.scale
        parts = [(coarse - 128) @ integers * scales, (fine - 128) @ integers * scales / 128]
        bias = weights["bias"].astype(np.float64) if name == "a" else np.zeros(len(weights["bias"]))
        # Each part is an exact integer times two factors, each rounded; then two sums.
        bound = 8 * 2**-24 * (sum(np.abs(part) for part in parts) + np.abs(bias))
        assert (np.abs(y - (parts[0] + parts[1] + bias)) <= bound).all()


def test_structure(weights: dict[str, Floats]) -> None:
    """Codes once for both layers, one product each, over one copy of the weight."""
    model = two_bytes(layers_model(weights))
    op_types = Counter(node.op_type for node in model.graph)
    assert op_types["QuantizeLinear"] == 2
    assert op_types["MatMulIntegerToFloat"] == 2
    assert op_types["MatMul"] == 0
    assert op_types["Concat"] == 2 + 2  # codes and scales; the shapes of two reshapes
    assert linear_layers(model.graph) == []
    assert not {"a.weight", "b.weight"} & model.graph.initializers.keys()


def test_layers_left_out_stay_float(weights: dict[str, Floats]) -> None:
    model = quantize_linear_two_bytes(layers_model(weights), ["b"], nearest())
    assert [layer.name for layer in linear_layers(model.graph)] == ["a"]


def test_the_model_is_not_changed(weights: dict[str, Floats]) -> None:
    model = layers_model(weights)
    before = ir.to_proto(model).SerializeToString()
    two_bytes(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_an_unknown_layer_and_a_second_time_are_refused(weights: dict[str, Floats]) -> None:
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named 'e'"):
        quantize_linear_two_bytes(layers_model(weights), ["e"], nearest())
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named 'a'"):
        two_bytes(two_bytes(layers_model(weights)))


@pytest.mark.parametrize("packed", [False, True], ids=["s8", "packed"])
def test_the_graph_is_valid_before_and_after(weights: dict[str, Floats], packed: bool) -> None:
    before = layers_model(weights)
    for model in (before, two_bytes(before, 4, packed)):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.exact_products
@pytest.mark.parametrize("weight_bits", [8, 3])
def test_numbers_are_those_of_integer_arithmetic(weights: dict[str, Floats], x: Floats, weight_bits: int) -> None:
    assert_integer_arithmetic(x, weights, weight_bits)


@pytest.mark.exact_products
def test_random_shapes() -> None:
    for seed in range(6):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        k, n, images, tokens = (int(size) for size in rng.integers(1, [70, 70, 4, 6]))
        x = rng.normal(0.3, 10.0 ** rng.integers(-2, 5), (images, tokens, k)).astype(np.float32)
        assert_integer_arithmetic(x, random_weights(rng, k, n))


def test_a_number_is_within_half_a_fine_step(x: Floats) -> None:
    """What is left of it is below 128 steps, and nothing of that is clipped."""
    coarse, fine, scale = two_codes(x)
    assert np.abs(fine - 128).max() <= 65
    found = ((coarse - 128) + (fine - 128) / 128) * scale
    assert (np.abs(found - x) <= (0.5 + 2**-6) / 128 * scale).all()


@pytest.mark.exact_products
def test_small_values_beside_a_large_one_keep_their_digits(weights: dict[str, Floats], x: Floats) -> None:
    """Against the layer with integer weights and inputs in float64: 1/128 of the error that one byte makes."""
    quantized = QuantizedWeight.per_channel(weights["b"], 1)
    exact = x.astype(np.float64) @ (quantized.codes * quantized.scale.astype(np.float64))
    one = run(quantize_linear_by_token(layers_model(weights), dict.fromkeys(LAYERS, 128), 8, nearest()), x)[1]
    errors = [float(np.sqrt(np.mean((y - exact) ** 2))) for y in (one, run(two_bytes(layers_model(weights)), x)[1])]
    assert errors[1] < errors[0] / 100


def test_inputs_of_nothing_give_the_bias(weights: dict[str, Floats]) -> None:
    y_a, y_b = run(two_bytes(layers_model(weights)), np.zeros((2, 3, K), np.float32))
    np.testing.assert_array_equal(y_a, np.broadcast_to(weights["bias"], y_a.shape))
    assert not y_b.any()


def test_no_tokens_have_no_outputs(weights: dict[str, Floats]) -> None:
    y_a, y_b = run(two_bytes(layers_model(weights)), np.zeros((2, 0, K), np.float32))
    assert y_a.shape == y_b.shape == (2, 0, N)


def test_a_token_does_not_see_the_others(weights: dict[str, Floats], x: Floats) -> None:
    model = two_bytes(layers_model(weights))
    whole = run(model, x)[1]
    x[:, 1:] *= 100
    np.testing.assert_array_equal(run(model, x)[1][:, 0], whole[:, 0])
