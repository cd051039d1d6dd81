"""Six kinds of test: structure, refusals, double application, checker, numerics against integers, random shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, branch, finish, new_builder
from nextscale.graph_passes.linear_layers import linear_layers, nearest
from nextscale.graph_passes.qparams import ActivationQParams, QuantizedWeight, Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_pairs import PairRanges, quantize_linear_pairs

from .bias_model import not_a_bias

Floats = NDArray[np.float32]
Weights = dict[str, Floats]
Ranges = Mapping[str, PairRanges]
K, N = 16, 24
LAYERS = ("a", "b", "d")
BITS = (8, 6, 4, 2)
STAGES = np.array([1, 2, 4], np.float32)


def random_weights(rng: np.random.Generator, k: int = K, n: int = N) -> Weights:
    weights = {name: rng.normal(0, k**-0.5, (k, n)).astype(np.float32) for name in LAYERS}
    return {**weights, "bias": rng.normal(size=n).astype(np.float32)}


def layers_model(weights: Weights) -> ir.Model:
    """y_a = x a + bias; y_b = x b; y_d = (-x) d at stage 0 and 0 later."""
    k, n = weights["a"].shape
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    stage = builder.input("stage", ir.DataType.INT64, [])
    x = builder.input("x", ir.DataType.FLOAT, ["2B", "l", k])

    def layer(op: OpBuilder, name: str, source: ir.Value) -> ir.Value:
        return op.MatMul(source, constants(f"{name}.weight", weights[name]), _name=name)

    y_a, y_b = op.Add(layer(op, "a", x), constants("a.bias", weights["bias"])), layer(op, "b", x)
    y_d = branch(
        op,
        op.Equal(stage, 0),
        lambda op: [layer(op, "d", op.Neg(x))],
        lambda op: [op.Mul(y_b, 0.0)],
        ["branched"],
    )[0]
    for name, value in (("y_a", y_a), ("y_b", y_b), ("y_d", y_d)):
        add_output(builder, value, name, ir.DataType.FLOAT, ["2B", "l", n])
    return finish(builder)


def guided_rows(rng: np.random.Generator, shape: tuple[int, ...] = (2, 5, K), difference: float = 0.1) -> Floats:
    """[2B, l, K], the rows with the class first, which differ a little from those without."""
    uncond = rng.normal(0.3, 1, shape)
    return np.concatenate([uncond + difference * rng.normal(size=shape), uncond]).astype(np.float32)


def parts_of(x: Floats) -> tuple[Floats, Floats]:
    cond, uncond = np.split(x, 2)
    return uncond, cond - uncond


def pair_of(x: Floats, factor: float = 1) -> PairRanges:
    """The parts' ranges times the factor, doubled from stage to stage."""
    sizes = STAGES * np.float32(factor)
    return PairRanges(*(Range(part.min() * sizes, part.max() * sizes) for part in parts_of(x)))


def ranges_of(x: Floats, factor: float = 1) -> Ranges:
    return {"a": pair_of(x, factor), "b": pair_of(x, factor), "d": pair_of(-x, factor)}


@pytest.fixture
def weights() -> Weights:
    return random_weights(np.random.default_rng(0))


@pytest.fixture
def x() -> Floats:
    return guided_rows(np.random.default_rng(1))


def make_integer(
    weights: Weights, ranges: Ranges, bits: int = 8, weight_bits: int = 8, packed: bool = False
) -> ir.Model:
    return quantize_linear_pairs(layers_model(weights), ranges, "stage", bits, nearest(weight_bits), packed)


def run(model: ir.Model, x: Floats, stage: int = 0, optimize: bool = True) -> list[Floats]:
    settings = onnxruntime.SessionOptions()
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    outputs: list[Floats] = session.run(None, {"x": x, "stage": np.array(stage)})
    return outputs


def at_stage(found: Range, stage: int) -> Range:
    return Range(found.minimum[stage : stage + 1], found.maximum[stage : stage + 1])


def integer_parts(
    x: Floats, weight: Floats, pair: PairRanges, stage: int, bits: int, weight_bits: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The integer products of uncond and difference, and what one counts of each."""
    quantized = QuantizedWeight.per_channel(weight, 1, weight_bits)
    found = []
    for part, observed in zip(parts_of(x), (pair.uncond, pair.difference), strict=True):
        qparams = ActivationQParams.from_range(at_stage(observed, stage), bits)
        codes = qparams.quantize(part).astype(np.int64) - int(qparams.zero_point[0])
        unit = np.float64(qparams.scale[0]) * quantized.scale.astype(np.float64)
        found.append((codes @ quantized.codes.astype(np.int64), unit))
    return found


def assert_integer_arithmetic(
    x: Floats, weights: Weights, ranges: Ranges, stage: int, bits: int = 8, weight_bits: int = 8, packed: bool = False
) -> None:
    """Of all three layers, with ONNX Runtime's optimizations and without."""
    model = make_integer(weights, ranges, bits, weight_bits, packed)
    shared = ranges["a"].merge(ranges["b"])
    for optimize in (False, True):
        outputs = dict(zip(LAYERS, run(model, x, stage, optimize), strict=True))
        for name, y in outputs.items():
            if name == "d" and stage > 0:
                np.testing.assert_array_equal(y, np.zeros_like(y))
                continue
            source, pair = (-x, ranges["d"]) if name == "d" else (x, shared)
            (u, u_unit), (d, d_unit) = integer_parts(source, weights[name], pair, stage, bits, weight_bits)
            bias = weights["bias"] if name == "a" else np.zeros(1, np.float32)
            y_cond, y_uncond = (rows.astype(np.float64) for rows in np.split(y, 2))
            # Three float32 roundings: two factors' product, its product with the integer, the bias; and the last sum.
            u_bound = 3 * 2**-24 * (np.abs(u) * u_unit + np.abs(bias))
            assert (np.abs(y_uncond - u * u_unit - bias) <= u_bound).all(), name
            d_bound = 3 * 2**-24 * np.abs(d) * d_unit + 2**-24 * np.abs(y_cond)
            assert (np.abs(y_cond - y_uncond - d * d_unit) <= d_bound).all(), name
            if name == "b" and (u_bound / u_unit).max() < 0.4 and (d_bound / d_unit).max() < 0.4:
                np.testing.assert_array_equal(np.round(y_uncond / u_unit), u)
                np.testing.assert_array_equal(np.round((y_cond - y_uncond) / d_unit), d)


# Structure


def test_structure(weights: Weights, x: Floats) -> None:
    """Two codes and one split for each distinct input, two products per layer; a's bias is in the row without class."""
    model = make_integer(weights, ranges_of(x))
    op_types = Counter(node.op_type for node in model.graph.all_nodes())
    assert op_types["QuantizeLinear"] == 4  # x; -x in the branch
    assert op_types["Sub"] == 2
    assert op_types["MatMulIntegerToFloat"] == 6
    assert op_types["MatMul"] == op_types["Clip"] == 0
    assert op_types["Add"] == 3  # y_u + y_d of each layer
    assert linear_layers(model.graph) == []
    products = {str(n.name): n for n in model.graph.all_nodes() if n.op_type == "MatMulIntegerToFloat"}
    names = [f"{name}/integer/{name}.{part}" for name in LAYERS for part in ("uncond", "difference")]
    assert sorted(products) == sorted(names)
    biased = [name for name, node in products.items() if len(node.inputs) > 5]
    assert biased == ["a/integer/a.uncond"]


def test_layers_of_one_input_share_its_codes(weights: Weights, x: Floats) -> None:
    model = make_integer(weights, ranges_of(x))
    products = {str(n.name).rpartition("/")[2]: n for n in model.graph if n.op_type == "MatMulIntegerToFloat"}
    for part in ("uncond", "difference"):
        assert products[f"a.{part}"].inputs[0] is products[f"b.{part}"].inputs[0]
        assert products[f"a.{part}"].inputs[1] is not products[f"b.{part}"].inputs[1]
    assert products["a.uncond"].inputs[0] is not products["a.difference"].inputs[0]
    assert products["a.uncond"].inputs[1] is products["a.difference"].inputs[1]


def test_one_table_holds_all_scales(weights: Weights, x: Floats) -> None:
    model = make_integer(weights, ranges_of(x))
    assert [node.name for node in model.graph if node.op_type == "Gather"] == [
        "pair/stage_scales",
        "pair/stage_zero_points",
    ]
    for name, dtype in (("pair.scales", np.float32), ("pair.zero_points", np.uint8)):
        table = model.graph.initializers[name].const_value
        assert table is not None
        assert table.numpy().shape == (3, 4)  # stages; two parts of two inputs
        assert table.numpy().dtype == dtype


def test_float_weights_are_gone(weights: Weights, x: Floats) -> None:
    """And the integer ones are there once, for both products."""
    model = make_integer(weights, ranges_of(x))
    assert not {f"{name}.weight" for name in LAYERS} & model.graph.initializers.keys()
    for name in LAYERS:
        value = model.graph.initializers[f"{name}.weight.codes"]
        assert value.const_value is not None
        expected = QuantizedWeight.per_channel(weights[name], axis=1).codes
        np.testing.assert_array_equal(value.const_value.numpy(), expected)
        assert len(value.uses()) == 2


@pytest.mark.parametrize("bits", [7, 4, 2])
def test_fewer_bits_have_a_cap_for_each_part(weights: Weights, x: Floats, bits: int) -> None:
    model = make_integer(weights, ranges_of(x), bits)
    caps = [node for node in model.graph.all_nodes() if node.op_type == "Clip"]
    assert len(caps) == 4
    limits = {int(cap.inputs[2].const_value.numpy()) for cap in caps}  # type: ignore[union-attr]
    assert limits == {2**bits - 1}


def test_layers_left_out_stay_float(weights: Weights, x: Floats) -> None:
    model = make_integer(weights, {"b": pair_of(x)})
    assert [layer.name for layer in linear_layers(model.graph)] == ["a", "d"]
    assert {"a.weight", "d.weight"} <= model.graph.initializers.keys()


def test_no_layers_change_nothing(weights: Weights) -> None:
    model = layers_model(weights)
    same = quantize_linear_pairs(model, {}, "stage", 8, nearest())
    assert ir.to_proto(same).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_the_model_is_not_changed(weights: Weights, x: Floats) -> None:
    model = layers_model(weights)
    before = ir.to_proto(model).SerializeToString()
    quantize_linear_pairs(model, ranges_of(x), "stage", 8, nearest())
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.exact_products
@pytest.mark.parametrize(
    ("case", "adds"),
    {
        "another activation": 2,
        "a constant of two axes": 2,
        "two consumers": 3,
        "a graph output": 2,
        "a product": 1,
        "a bias from the left": 1,
    }.items(),
)
def test_only_a_bias_of_the_layer_alone_is_taken_in(case: str, adds: int, x: Floats) -> None:
    """y_u + y_d is one Add, and a bias goes into the product; the numbers are the layer's in any case."""
    before = not_a_bias(case, K)
    after = quantize_linear_pairs(before, {"a": pair_of(x)}, "stage", 8, nearest())
    assert Counter(node.op_type for node in after.graph)["Add"] == adds
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    assert [output.name for output in after.graph.outputs] == [output.name for output in before.graph.outputs]
    exact, found = (run(model, x)[0] for model in (before, after))
    # Half a step of each factor: of a span of 8 and 16 weights of about 1, of about 4 and values of 1.
    assert np.abs(found - exact).max() < 16 * (8 / 255 / 2 * 3 + 4 / 127 / 2 * 3) / 2
    assert not np.array_equal(found, exact)


# Refusals and double application


@pytest.mark.parametrize("name", ["e", "word_embed", ""])
def test_an_unknown_layer_is_refused(weights: Weights, x: Floats, name: str) -> None:
    with pytest.raises(ValueError, match=f"no MatMul with a constant 2-D weight is named '{name}'"):
        make_integer(weights, {name: pair_of(x)})


def test_a_matmul_without_a_constant_weight_is_refused(x: Floats) -> None:
    builder = new_builder("product")
    a, b = (builder.input(name, ir.DataType.FLOAT, ["N", "N"]) for name in "ab")
    add_output(builder, builder.op.MatMul(a, b, _name="scores"), "y", ir.DataType.FLOAT, ["N", "N"])
    with pytest.raises(ValueError, match="named 'scores'"):
        quantize_linear_pairs(finish(builder), {"scores": pair_of(x)}, "stage", 8, nearest())


def test_an_unknown_stage_input_is_refused(weights: Weights, x: Floats) -> None:
    with pytest.raises(ValueError, match="no input of the graph is named 'si'"):
        quantize_linear_pairs(layers_model(weights), ranges_of(x), "si", 8, nearest())


def test_a_second_time_is_refused(weights: Weights, x: Floats) -> None:
    once = make_integer(weights, ranges_of(x))
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named 'a'"):
        quantize_linear_pairs(once, ranges_of(x), "stage", 8, nearest())


def test_other_layers_the_second_time_are_refused(weights: Weights, x: Floats) -> None:
    """One table holds the scales of all."""
    ranges = ranges_of(x)
    once = make_integer(weights, {"a": ranges["a"]})
    with pytest.raises(ValueError, match=r"the graph has a table 'pair\.scales' already"):
        quantize_linear_pairs(once, {"d": ranges["d"]}, "stage", 8, nearest())


def test_static_ranges_for_other_layers_of_the_same_input(weights: Weights, x: Floats) -> None:
    """Both passes on one graph, in either order, are each layer's own numbers."""
    pair = {"a": pair_of(x), "d": pair_of(-x)}
    static = {"b": Range(x.min() * STAGES, x.max() * STAGES)}
    model = layers_model(weights)
    first = quantize_linear(quantize_linear_pairs(model, pair, "stage", 8, nearest()), static, "stage")
    second = quantize_linear_pairs(quantize_linear(model, static, "stage"), pair, "stage", 8, nearest())
    alone = [
        run(quantize_linear_pairs(model, pair, "stage", 8, nearest()), x),
        run(quantize_linear(model, static, "stage"), x),
    ]
    for both in (first, second):
        onnx.checker.check_model(ir.to_proto(both), full_check=True)
        for found, expected in zip(run(both, x), (alone[0][0], alone[1][1], alone[0][2]), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("bits", "packed"), [(8, False), (4, True)], ids=["s8", "packed"])
def test_the_graph_is_valid_before_and_after(weights: Weights, x: Floats, bits: int, packed: bool) -> None:
    before = layers_model(weights)
    for model in (before, quantize_linear_pairs(before, ranges_of(x), "stage", bits, nearest(bits), packed)):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_the_domain_of_the_integer_product_is_imported(weights: Weights, x: Floats) -> None:
    """Models of others do not have it."""
    model = layers_model(weights)
    del model.opset_imports["com.microsoft"]
    once = quantize_linear_pairs(model, ranges_of(x), "stage", 8, nearest())
    assert once.opset_imports["com.microsoft"] == 1


# Numerics


@pytest.mark.exact_products
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("weight_bits", [8, 3])
@pytest.mark.parametrize("bits", BITS)
def test_numbers_are_those_of_integer_arithmetic(
    weights: Weights, x: Floats, bits: int, weight_bits: int, stage: int
) -> None:
    assert_integer_arithmetic(x, weights, ranges_of(x), stage, bits, weight_bits)


@pytest.mark.exact_products
@pytest.mark.parametrize("bits", BITS)
def test_values_outside_the_range_get_the_codes_at_its_ends(weights: Weights, x: Floats, bits: int) -> None:
    """Up to twice the range: capped at 2^bits - 1, not at 255."""
    ranges = ranges_of(x, 0.5)
    assert_integer_arithmetic(x, weights, ranges, 0, bits)
    for part, observed in zip(parts_of(x), (ranges["b"].uncond, ranges["b"].difference), strict=True):
        codes = ActivationQParams.from_range(at_stage(observed, 0), bits).quantize(part)
        assert (codes.min(), codes.max()) == (0, 2**bits - 1)


@pytest.mark.exact_products
def test_layers_that_share_an_input_have_the_range_of_both(weights: Weights, x: Floats) -> None:
    """One end is a's, the other b's, in each part."""
    pair, none = pair_of(x), np.zeros(3, np.float32)
    below = PairRanges(Range(pair.uncond.minimum, none), Range(none, pair.difference.maximum))
    above = PairRanges(Range(none, pair.uncond.maximum), Range(pair.difference.minimum, none))
    assert_integer_arithmetic(x, weights, {"a": below, "b": above, "d": pair_of(-x)}, 0)
    merged, apart = below.merge(above), make_integer(weights, {"a": below, "b": above, "d": pair_of(-x)})
    together = make_integer(weights, {"a": merged, "b": merged, "d": pair_of(-x)})
    for found, expected in zip(run(apart, x), run(together, x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_random_shapes() -> None:
    for seed in range(8):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        k, n, images, tokens = (int(size) for size in rng.integers(1, [70, 70, 4, 6]))
        size, difference = 10.0 ** rng.integers(-2, 3), 10.0 ** rng.integers(-3, 1)
        x = (size * guided_rows(rng, (images, tokens, k), difference)).astype(np.float32)
        bits, weight_bits = int(rng.choice(BITS)), int(rng.choice(BITS))
        packed = weight_bits <= 4 and bool(rng.integers(2))
        stage = int(rng.integers(3))
        assert_integer_arithmetic(x, random_weights(rng, k, n), ranges_of(x), stage, bits, weight_bits, packed)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("low", [-1.0, 0.0, 0.5], ids=["both signs", "up from zero", "above zero"])
def test_equal_rows_stay_equal_bit_for_bit(weights: Weights, x: Floats, bits: int, low: float) -> None:
    """A difference of zero has the code of zero, wherever its range lies, and adds nothing."""
    x[:2] = x[2:]
    difference = Range(low * STAGES, 2 * STAGES)
    ranges = {name: PairRanges(pair.uncond, difference) for name, pair in ranges_of(x).items()}
    for y in run(make_integer(weights, ranges, bits), x):
        cond, uncond = np.split(y, 2)
        assert cond.tobytes() == uncond.tobytes()
        assert np.abs(uncond).max() > 0


def test_inputs_of_nothing_give_the_bias(weights: Weights) -> None:
    """Ranges of zero, and of less than a normal number: no division by zero."""
    x = np.zeros((2, 3, K), np.float32)
    x[0, 1] = 1e-44
    y_a, y_b, y_d = run(make_integer(weights, ranges_of(x)), x)
    np.testing.assert_array_equal(y_a, np.broadcast_to(weights["bias"], y_a.shape))
    np.testing.assert_array_equal(y_b, np.zeros_like(y_b))
    np.testing.assert_array_equal(y_d, np.zeros_like(y_d))


def test_a_stage_without_tokens_has_no_outputs(weights: Weights, x: Floats) -> None:
    for y in run(make_integer(weights, ranges_of(x)), x[:, :0]):
        assert y.shape == (4, 0, N)


def test_an_image_does_not_see_the_others(weights: Weights, x: Floats) -> None:
    model = make_integer(weights, ranges_of(x))
    together = run(model, x)
    for i in range(2):
        for whole, alone in zip(together, run(model, x[i::2]), strict=True):
            np.testing.assert_array_equal(whole[i::2], alone)


@pytest.mark.exact_products
def test_guidance_amplifies_the_error_of_the_difference_alone() -> None:
    """At t = 4 the error is over five times smaller than with one range for both rows.

    Independent errors of both rows add up to sqrt(41) = 6.4 times one's; here the row's own counts once, and five times
    that of a difference whose step is 3% of the row's.
    """
    t, rng = 4, np.random.default_rng(0)
    weights, x = random_weights(rng, 64, 64), guided_rows(rng, (4, 64, 64), difference=0.03)
    quantized = QuantizedWeight.per_channel(weights["b"], 1)
    exact = x.astype(np.float64) @ (quantized.codes * quantized.scale.astype(np.float64))

    def guided_error(model: ir.Model) -> float:
        cond, uncond = np.split(run(model, x)[1] - exact, 2)
        return float(np.sqrt(np.mean(((1 + t) * cond - t * uncond) ** 2)))

    pair = guided_error(make_integer(weights, {"b": pair_of(x)}))
    static = {"b": Range(x.min() * STAGES, x.max() * STAGES)}
    assert guided_error(quantize_linear(layers_model(weights), static, "stage")) > 5 * pair


@pytest.mark.parametrize("weight_bits", [4, 3, 2])
def test_packed_weights_give_the_same_outputs(weights: Weights, x: Floats, weight_bits: int) -> None:
    """Bit for bit, of half the bytes."""
    stored, packed = (make_integer(weights, ranges_of(x), 8, weight_bits, pack) for pack in (False, True))
    for expected, found in zip(run(stored, x), run(packed, x), strict=True):
        np.testing.assert_array_equal(found, expected)
    for name in LAYERS:
        tensor = packed.graph.initializers[f"{name}.weight.packed"].const_value
        assert tensor is not None
        assert tensor.dtype == ir.DataType.UINT4
        assert tensor.nbytes == K * N // 2
        assert f"{name}.weight.codes" not in packed.graph.initializers
