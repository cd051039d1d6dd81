"""Structure, refusals, idempotence, checker, numerics against integer arithmetic, random shapes; by image, by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, branch, finish, new_builder
from nextscale.graph_passes.linear_layers import linear_layers, nearest
from nextscale.graph_passes.qparams import QuantizedWeight
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token

from .bias_model import not_a_bias

Weights = dict[str, NDArray[np.float32]]
Floats = NDArray[np.float64]
Pass = Callable[..., ir.Model]
ROWS = 2
K, N = 16, 24
LAYERS = ("a", "b", "d")
BITS = (8, 6, 4, 2)


def by_image(model: ir.Model, bits: int = 8, weight_bits: int = 8, packed: bool = False) -> ir.Model:
    return quantize_linear_by_image(model, dict.fromkeys(LAYERS, ROWS), bits, nearest(weight_bits), packed)


def by_token(model: ir.Model, bits: int = 8, weight_bits: int = 8, packed: bool = False) -> ir.Model:
    zero_points = dict.fromkeys(LAYERS, zero_point_of(bits))
    return quantize_linear_by_token(model, zero_points, bits, nearest(weight_bits), packed)


def zero_point_of(bits: int) -> int:
    return 2 ** (bits - 1)


both = pytest.mark.parametrize("make_integer", [by_image, by_token])


def random_weights(rng: np.random.Generator, k: int = K, n: int = N) -> Weights:
    weights = {name: rng.normal(0, k**-0.5, (k, n)).astype(np.float32) for name in LAYERS}
    return {**weights, "bias": rng.normal(size=n).astype(np.float32)}


def layers_model(weights: Weights) -> ir.Model:
    """y_a = x a + bias; y_b = x b; y_d = (tanh x) d at stage 0 and 0 later."""
    k, n = weights["a"].shape
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    stage = builder.input("stage", ir.DataType.INT64, [])
    x = builder.input("x", ir.DataType.FLOAT, ["R", "l", k])

    def layer(op: OpBuilder, name: str, source: ir.Value) -> ir.Value:
        return op.MatMul(source, constants(f"{name}.weight", weights[name]), _name=name)

    y_a, y_b = op.Add(layer(op, "a", x), constants("a.bias", weights["bias"])), layer(op, "b", x)
    hidden = op.Tanh(x)
    hidden.dtype, hidden.shape = x.dtype, x.shape
    y_d = branch(
        op,
        op.Equal(stage, 0),
        lambda op: [layer(op, "d", hidden)],
        lambda op: [op.Mul(y_b, 0.0)],
        ["branched"],
    )[0]
    for name, value in (("y_a", y_a), ("y_b", y_b), ("y_d", y_d)):
        add_output(builder, value, name, ir.DataType.FLOAT, ["R", "l", n])
    return finish(builder)


@pytest.fixture
def weights() -> Weights:
    return random_weights(np.random.default_rng(0))


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0.3, 1, size=(2 * ROWS, 5, K)).astype(np.float32)


def run(model: ir.Model, x: NDArray[np.float32], stage: int = 0) -> list[NDArray[np.float32]]:
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, {"x": x, "stage": np.array(stage)})
    return outputs


def image_extremes(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The smallest and largest value of each image, given to its rows: [R, 1, 1]."""
    images = x.reshape(ROWS, len(x) // ROWS, -1)
    low, high = images.min(axis=(0, 2)), images.max(axis=(0, 2))
    return np.tile(low, ROWS).reshape(-1, 1, 1), np.tile(high, ROWS).reshape(-1, 1, 1)


def normal_or_1(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(scale, np.float32(2.0**-100))


def expected_codes(
    make_integer: Pass, x: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Codes, zero points and scales as docs/quantization.md says, in the graph's float32."""
    qmax = 2**bits - 1
    if make_integer is by_image:
        low, high = image_extremes(x)
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = normal_or_1((high - low) / np.float32(qmax))
        zero_point = np.clip(np.round(-low / scale), 0, qmax).astype(np.int64)
    else:
        z = zero_point_of(bits)
        low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
        scale = normal_or_1(np.maximum(high / np.float32(qmax - z), -low / np.float32(z)))
        zero_point = np.full_like(scale, z).astype(np.int64)
    codes = np.clip(np.round(x / scale).astype(np.int64) + zero_point, 0, qmax)
    return codes, zero_point, scale


def integer_layer(
    make_integer: Pass, x: NDArray[np.float32], weight: NDArray[np.float32], bits: int, weight_bits: int
) -> tuple[Floats, Floats]:
    """What integer arithmetic gives, and how far float32 rounding of it may go."""
    codes, zero_point, scale = expected_codes(make_integer, x, bits)
    quantized = QuantizedWeight.per_channel(weight, 1, weight_bits)
    integers = quantized.codes.astype(np.int64)
    scales = scale.astype(np.float64) * quantized.scale
    exact = ((codes - zero_point) @ integers) * scales
    # Two terms, the product around the middle code and the zero point's, each an exact integer times three factors.
    middle = 2 ** (bits - 1)
    terms = np.abs((codes - middle) @ integers) + np.abs((zero_point - middle) * integers.sum(axis=0))
    return exact, 6 * 2**-24 * terms * scales


def assert_integer_arithmetic(
    make_integer: Pass, x: NDArray[np.float32], weights: Weights, bits: int, weight_bits: int, stage: int = 0
) -> None:
    y_a, y_b, y_d = run(make_integer(layers_model(weights), bits, weight_bits), x, stage)
    exact, bound = integer_layer(make_integer, x, weights["b"], bits, weight_bits)
    assert (np.abs(y_b - exact) <= bound).all()
    exact, bound = integer_layer(make_integer, x, weights["a"], bits, weight_bits)
    biased = exact + weights["bias"]
    # The bias is added to the zero point's term, and both to the product.
    assert (np.abs(y_a - biased) <= 2 * bound + 2 * 2**-24 * (np.abs(biased) + np.abs(weights["bias"]))).all()
    if stage != 0:
        np.testing.assert_array_equal(y_d, np.zeros_like(y_d))
        return
    # Two libraries' tanh differ in the last bits: a few codes, or a scale a little, move.
    exact, bound = integer_layer(make_integer, np.tanh(x), weights["d"], bits, weight_bits)
    assert np.mean(np.abs(y_d - exact) > bound + 1e-6 * np.abs(exact).max()) < 0.05


# Structure


def test_structure_by_image(weights: Weights, x: NDArray[np.float32]) -> None:
    """Codes once for each distinct input, one integer product a layer, and a's bias in the zero point's term."""
    model = by_image(layers_model(weights))
    op_types = Counter(node.op_type for node in model.graph.all_nodes())
    assert op_types["QuantizeLinear"] == 4  # x and its zero point; tanh and its own in the branch
    assert op_types["MatMulIntegerToFloat"] == 3
    assert op_types["MatMul"] == 0
    assert op_types["Add"] == 6  # two ranges; product + shift of each layer; shift + bias of a
    assert linear_layers(model.graph) == []


def test_structure_by_token(weights: Weights) -> None:
    """No zero point's term, so biases stay where they are."""
    model = by_token(layers_model(weights))
    op_types = Counter(node.op_type for node in model.graph.all_nodes())
    assert op_types["QuantizeLinear"] == 2
    assert op_types["MatMulIntegerToFloat"] == 3
    assert op_types["Add"] == 1
    assert linear_layers(model.graph) == []


@both
def test_products_have_no_bias_and_the_layers_names(make_integer: Pass, weights: Weights) -> None:
    """A bias inside the product would be multiplied by the rows' scales."""
    model = make_integer(layers_model(weights))
    products = [node for node in model.graph.all_nodes() if node.op_type == "MatMulIntegerToFloat"]
    assert [str(node.name).rpartition("/")[2] for node in products] == ["a", "b", "d"]
    assert [len(node.inputs) for node in products] == [5, 5, 5]


@both
def test_float_weights_are_gone(make_integer: Pass, weights: Weights) -> None:
    model = make_integer(layers_model(weights))
    assert not {f"{name}.weight" for name in LAYERS} & model.graph.initializers.keys()
    for name in LAYERS:
        tensor = model.graph.initializers[f"{name}.weight.codes"].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), QuantizedWeight.per_channel(weights[name], axis=1).codes)


def test_layers_left_out_stay_float(weights: Weights) -> None:
    for model in (
        quantize_linear_by_image(layers_model(weights), {"b": ROWS}, 8, nearest()),
        quantize_linear_by_token(layers_model(weights), {"b": 128}, 8, nearest()),
    ):
        assert [layer.name for layer in linear_layers(model.graph)] == ["a", "d"]
        assert {"a.weight", "d.weight"} <= model.graph.initializers.keys()


@both
def test_the_model_is_not_changed(make_integer: Pass, weights: Weights) -> None:
    model = layers_model(weights)
    before = ir.to_proto(model).SerializeToString()
    make_integer(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.exact_products
@pytest.mark.parametrize(
    ("case", "adds"),
    {
        "another activation": 3,
        "a constant of two axes": 3,
        "two consumers": 4,
        "a graph output": 3,
        "a product": 2,
        "a bias from the left": 3,
    }.items(),
)
def test_only_a_bias_of_the_layer_alone_is_taken_in(case: str, adds: int, x: NDArray[np.float32]) -> None:
    """Two Adds more than before, one the range's; with a bias a third. The numbers are the layer's in any case."""
    before = not_a_bias(case, K)
    after = quantize_linear_by_image(before, {"a": ROWS}, 8, nearest())
    assert Counter(node.op_type for node in after.graph)["Add"] == adds
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert [output.name for output in after.graph.outputs] == [output.name for output in before.graph.outputs]
    exact, found = (run(model, x)[0] for model in (before, after))
    # Half a step of each factor: of a span of 8 and 16 weights of about 1, of about 4 and values of 1.
    assert np.abs(found - exact).max() < 16 * (8 / 255 / 2 * 3 + 4 / 127 / 2 * 3) / 2
    assert not np.array_equal(found, exact)


# Refusals and idempotence


@both
def test_a_second_time_is_refused(make_integer: Pass, weights: Weights) -> None:
    once = make_integer(layers_model(weights))
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named 'a'"):
        make_integer(once)


def test_an_unknown_layer_is_refused(weights: Weights) -> None:
    message = "no MatMul with a constant 2-D weight is named 'e'"
    with pytest.raises(ValueError, match=message):
        quantize_linear_by_image(layers_model(weights), {"e": ROWS}, 8, nearest())
    with pytest.raises(ValueError, match=message):
        quantize_linear_by_token(layers_model(weights), {"e": 128}, 8, nearest())


@both
@pytest.mark.parametrize("packed", [False, True], ids=["s8", "packed"])
def test_the_graph_is_valid_before_and_after(make_integer: Pass, weights: Weights, packed: bool) -> None:
    before = layers_model(weights)
    for model in (before, make_integer(before, 4, 4, packed)):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


@both
def test_the_domain_of_the_integer_product_is_imported(make_integer: Pass, weights: Weights) -> None:
    """Models of others do not have it."""
    model = layers_model(weights)
    del model.opset_imports["com.microsoft"]
    assert make_integer(model).opset_imports["com.microsoft"] == 1


# Numerics


@pytest.mark.exact_products
@both
@pytest.mark.parametrize("weight_bits", [8, 3])
@pytest.mark.parametrize("bits", BITS)
def test_numbers_are_those_of_integer_arithmetic(
    make_integer: Pass, weights: Weights, x: NDArray[np.float32], bits: int, weight_bits: int
) -> None:
    assert_integer_arithmetic(make_integer, x, weights, bits, weight_bits)


@both
def test_random_shapes(make_integer: Pass) -> None:
    for seed in range(6):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        k, n, images, tokens = (int(size) for size in rng.integers(1, [70, 70, 4, 6]))
        x = rng.normal(0.3, 10.0 ** rng.integers(-2, 2), (ROWS * images, tokens, k)).astype(np.float32)
        bits, weight_bits = int(rng.choice(BITS)), int(rng.choice(BITS))
        assert_integer_arithmetic(make_integer, x, random_weights(rng, k, n), bits, weight_bits, int(rng.integers(2)))


@pytest.mark.exact_products
@both
@pytest.mark.parametrize(("low", "high"), [(1, 3), (-3, -1), (-0.17, 9)], ids=["positive", "negative", "gelu"])
def test_one_sided_inputs(make_integer: Pass, weights: Weights, low: float, high: float) -> None:
    """The zero point is at an end of the codes, or near one, and its term is large."""
    x = np.random.default_rng(2).uniform(low, high, (ROWS, 3, K)).astype(np.float32)
    assert_integer_arithmetic(make_integer, x, weights, 8, 8)


@both
def test_inputs_of_nothing_give_the_bias(make_integer: Pass, weights: Weights) -> None:
    """No division by zero. By image the scale is 1, and two terms of opposite sign are rounded once or twice each."""
    x = np.zeros((ROWS, 3, K), np.float32)
    x[1, 1] = 1e-44
    y_a, y_b, _ = run(make_integer(layers_model(weights)), x)
    _, bound_a = integer_layer(make_integer, x, weights["a"], 8, 8)
    _, bound_b = integer_layer(make_integer, x, weights["b"], 8, 8)
    assert (np.abs(y_b) <= bound_b).all()
    assert (np.abs(y_a - weights["bias"]) <= bound_a + 2 * 2**-24 * np.abs(weights["bias"])).all()
    assert bound_b.max() == 0 if make_integer is by_token else bound_b.max() < 1e-3


@both
def test_a_stage_without_tokens_has_no_outputs(make_integer: Pass, weights: Weights) -> None:
    y_a, y_b, y_d = run(make_integer(layers_model(weights)), np.zeros((2 * ROWS, 0, K), np.float32))
    assert y_a.shape == y_b.shape == y_d.shape == (2 * ROWS, 0, N)


@both
def test_an_image_does_not_see_the_others(make_integer: Pass, weights: Weights, x: NDArray[np.float32]) -> None:
    """Rows r and r + B are one image: alone it has the same outputs, bit for bit."""
    x[0] *= 10
    model = make_integer(layers_model(weights))
    together = run(model, x)
    for i in range(2):
        for whole, alone in zip(together, run(model, x[i::2]), strict=True):
            np.testing.assert_array_equal(whole[i::2], alone)


def test_both_rows_of_an_image_share_its_range(weights: Weights, x: NDArray[np.float32]) -> None:
    x[0] *= 10
    shared = run(by_image(layers_model(weights)), x)[1]
    apart = run(quantize_linear_by_image(layers_model(weights), dict.fromkeys(LAYERS, 1), 8, nearest()), x)[1]
    np.testing.assert_array_equal(shared[0], apart[0])
    assert not np.array_equal(shared[2], apart[2])


@pytest.mark.parametrize("bits", BITS)
def test_a_token_does_not_see_the_others(weights: Weights, x: NDArray[np.float32], bits: int) -> None:
    model = by_token(layers_model(weights), bits)
    whole = run(model, x)[1]
    x[:, 1:] *= 100
    np.testing.assert_array_equal(run(model, x)[1][:, 0], whole[:, 0])


@pytest.mark.parametrize("bits", BITS)
def test_nothing_is_clipped_by_token(x: NDArray[np.float32], bits: int) -> None:
    """Every value is within half a step of its code, up to rounding."""
    codes, zero_point, scale = expected_codes(by_token, x, bits)
    assert (np.abs((codes - zero_point) * scale - x) <= (0.5 + 2**bits * 2**-22) * scale).all()
    # One end of the codes at least is reached by each token.
    assert ((codes.min(axis=-1) == 0) | (codes.max(axis=-1) == 2**bits - 1)).all()


@both
@pytest.mark.parametrize("weight_bits", [4, 3, 2])
def test_packed_weights_give_the_same_outputs(
    make_integer: Pass, weights: Weights, x: NDArray[np.float32], weight_bits: int
) -> None:
    stored, packed = (make_integer(layers_model(weights), 8, weight_bits, p) for p in (False, True))
    for expected, found in zip(run(stored, x), run(packed, x), strict=True):
        np.testing.assert_array_equal(found, expected)
    tensor = packed.graph.initializers["a.weight.packed"].const_value
    assert tensor is not None
    assert tensor.dtype == ir.DataType.UINT4
    assert tensor.nbytes == K * N // 2
