"""Structure, refusals, idempotence, checker, numerics against the NumPy oracle, random shapes; and a foreign model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import attention_oracle as oracle
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.export.graph_builder import add_output, branch, finish, new_builder
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.quantize_attention import (
    POWERS,
    AttentionWeights,
    Magnitudes,
    _limbs,
    overflow_name,
    quantize_attention,
)

from .attention_model import (
    BITS,
    FORMS,
    MIX,
    PLACES,
    RELATIVE,
    ROWS,
    THETA,
    WEIGHTS,
    Attention,
    Form,
    Operands,
    assert_like_oracle,
    attention_model,
    integer_attention,
    session_of,
    shift_and_sum,
)
from .test_attention_patterns import Attention as TorchAttention
from .test_attention_patterns import MultiheadAttention, ViT, exported


def quantized(weights: AttentionWeights, bits: int, form: Form | None = None) -> ir.Model:
    return quantize_attention(attention_model(), weights, bits, ROWS, None, shift_and_sum(form), "stage")


@pytest.fixture
def operands() -> Operands:
    return Operands.random(np.random.default_rng(0))


def test_the_four_quantizers_are_tested() -> None:
    assert get_args(AttentionWeights) == WEIGHTS
    assert POWERS == oracle.POWERS


# Structure


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_structure(weights: AttentionWeights, form: Form | None) -> None:
    """No float product is left; one integer product for the scores, one for each limb and term for the values."""
    model = quantized(weights, 8, form)
    op_types = Counter(node.op_type for node in model.graph)
    assert op_types["MatMul"] == 0
    assert op_types["MatMulIntegerToFloat"] == 1
    assert op_types["MatMulInteger"] == (2 if weights.startswith("log2") else 1) * (2 if form else 1)
    (scores,) = (node for node in model.graph if node.op_type == "MatMulIntegerToFloat")
    assert scores.name == "mix/scores/scores"
    assert len(scores.inputs) == 5  # no bias
    outputs = [output.name for output in model.graph.outputs]
    assert outputs == ["y", "same_stage", *([overflow_name(MIX)] if form else [])]
    assert str(model.graph.outputs[0].shape) == str(attention_model().graph.outputs[0].shape)


def test_the_tables_are_powers_of_two() -> None:
    """Of the two limbs of all codes; what lies outside a limb's own codes is cut off before."""
    builder = new_builder("limbs")
    codes = builder.input("codes", ir.DataType.UINT8, ["N"])
    limbs = _limbs(builder.op, codes, powers=True)
    for i, limb in enumerate(limbs):
        add_output(builder, limb.operand, f"limb.{i}", ir.DataType.UINT8, ["N"])
    low, high = session_of(finish(builder)).run(None, {"codes": np.arange(POWERS + 1, dtype=np.uint8)})
    assert [limb.multiplier for limb in limbs] == [1, 128]
    total = low.astype(np.int64) + 128 * (high.astype(np.int64) - 1)
    np.testing.assert_array_equal(total, [0, *2 ** np.arange(POWERS)])


def test_the_counter_is_there_only_on_demand() -> None:
    quiet = quantize_attention(attention_model(), "row", 8, ROWS, None, ShiftAndSum("residual", THETA, PLACES), "stage")
    assert [output.name for output in quiet.graph.outputs] == ["y", "same_stage"]


def test_the_model_is_not_changed() -> None:
    model = attention_model()
    before = ir.to_proto(model).SerializeToString()
    quantize_attention(model, "log2", 8, ROWS, None, shift_and_sum("residual"), "stage")
    assert ir.to_proto(model).SerializeToString() == before


def test_only_attention_of_the_given_names_becomes_integer() -> None:
    """One that no name is given for stays as it is, such as a text's."""
    builder = new_builder("two")
    op = builder.op
    x = builder.input("x", ir.DataType.FLOAT, [2, 1, 3, 4])
    for name in ("text", "image"):
        key = op.Transpose(x, perm=[0, 1, 3, 2])
        weights = op.Softmax(op.MatMul(x, key, _name=f"{name}.scores"), axis=-1)
        x = op.MatMul(weights, x, _name=f"{name}.mix")
        x.dtype, x.shape = ir.DataType.FLOAT, ir.Shape([2, 1, 3, 4])
    add_output(builder, x, "y", ir.DataType.FLOAT, [2, 1, 3, 4])
    model = finish(builder)
    mixed = quantize_attention(model, "row", 8, ROWS, names=["image.mix"])
    assert [found.name for found in attention_patterns(mixed.graph)] == ["text.mix"]
    with pytest.raises(ValueError, match=r"no MatMul - Softmax - MatMul in the graph: 'other\.mix'"):
        quantize_attention(model, "row", 8, ROWS, names=["image.mix", "other.mix"])


# Refusals and idempotence


def test_a_second_time_is_refused() -> None:
    """What is integer already is no attention any more."""
    with pytest.raises(ValueError, match="no MatMul - Softmax - MatMul in the graph"):
        quantize_attention(quantized("row", 8), "row", 8, ROWS)


def test_a_graph_without_attention_is_refused() -> None:
    builder = new_builder("plain")
    x = builder.input("x", ir.DataType.FLOAT, ["N", 4])
    add_output(builder, builder.op.Softmax(x, axis=-1), "y", ir.DataType.FLOAT, ["N", 4])
    with pytest.raises(ValueError, match="no MatMul - Softmax - MatMul in the graph"):
        quantize_attention(finish(builder), "row", 8)


def test_missing_magnitudes_are_refused() -> None:
    with pytest.raises(ValueError, match="no magnitudes for the attention 'mix'"):
        quantize_attention(attention_model(), "row", 8, ROWS, {"other": Magnitudes(1, 1, 1)})


def test_an_unknown_stage_input_is_refused() -> None:
    with pytest.raises(ValueError, match="the graph has no input 'step'"):
        quantize_attention(attention_model(), "row", 8, ROWS, None, shift_and_sum("residual"), "step")


def test_places_of_several_stages_need_the_stage() -> None:
    with pytest.raises(ValueError, match="places for 2 stages, but no input tells the stage"):
        quantize_attention(attention_model(), "row", 8, ROWS, None, shift_and_sum("residual"))


def branching_model() -> ir.Model:
    """Attention at stage 0, zeros later."""
    builder = new_builder("branching")
    shapes = {"q": ["R", "H", "l", "d"], "k": ["R", "H", "d", "T"], "v": ["R", "H", "T", "d"]}
    q, k, v = (builder.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items())
    stage = builder.input("stage", ir.DataType.INT64, [])
    y = branch(
        builder.op,
        builder.op.Equal(stage, 0),
        lambda op: [op.MatMul(op.Softmax(op.MatMul(q, k, _name="scores"), axis=-1), v, _name=MIX)],
        lambda op: [op.Mul(q, 0.0)],
        ["attended"],
    )[0]
    add_output(builder, y, "y", ir.DataType.FLOAT, shapes["q"])
    return finish(builder)


def test_attention_in_a_subgraph_is_found_but_cannot_count(operands: Operands) -> None:
    weights, counting = "row", shift_and_sum("residual")
    assert counting is not None
    with pytest.raises(ValueError, match=r"mix is in a subgraph; attentive tokens are counted in the main graph only"):
        quantize_attention(branching_model(), weights, 8, ROWS, None, counting, "stage")
    silent = replace(counting, count_overflow=False)
    inside, alone = (
        session_of(quantize_attention(model, weights, 8, ROWS, None, silent, "stage")).run(
            ["y"], {**vars(operands), "stage": np.array(0)}
        )[0]
        for model in (branching_model(), attention_model())
    )
    np.testing.assert_array_equal(inside, alone)
    assert inside.any()


def test_the_graph_is_valid_before_and_after() -> None:
    """`session_of` runs the checker."""
    session_of(attention_model())
    for form in FORMS:
        session_of(quantized("log2", 8, form))


def test_the_domain_of_the_integer_product_is_imported() -> None:
    """Models of others do not have it."""
    model = attention_model()
    del model.opset_imports["com.microsoft"]
    assert quantize_attention(model, "row", 8, ROWS).opset_imports["com.microsoft"] == 1
    assert "com.microsoft" not in model.opset_imports


# Numerics


@pytest.mark.exact_products
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_numbers_are_the_oracles(operands: Operands, weights: AttentionWeights, bits: int, form: Form | None) -> None:
    outcome = integer_attention(weights, bits, form)(operands)
    product, scale = oracle.scores(operands.q, operands.k, bits, ROWS)
    # An int32 below 2^24 is exact in float32; the scales' product, and that with it, are rounded once each.
    np.testing.assert_array_less(np.abs(product), 2**24)
    exact = product * scale.astype(np.float64)
    assert (np.abs(outcome.scores - exact) <= 2 * 2**-24 * np.abs(exact)).all()
    assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form))


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_shift_and_sum_changes_the_numbers(operands: Operands, weights: AttentionWeights, bits: int) -> None:
    """Or the comparison above would be of nothing."""
    plain, residual = (integer_attention(weights, bits, form)(operands).y for form in (None, "residual"))
    assert np.abs(plain - residual).max() > 100 * RELATIVE * np.abs(plain).max()


@pytest.mark.exact_products
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_leaves_a_static_range_is_clipped(
    operands: Operands, weights: AttentionWeights, bits: int, form: Form | None
) -> None:
    """At both ends, of all three operands."""
    known = Magnitudes(1, 0.5, 0.25)
    outcome = integer_attention(weights, bits, form, magnitudes=known)(operands)
    product, scale = oracle.scores(operands.q, operands.k, bits, ROWS, (known.query, known.key))
    for x, magnitude in zip(vars(operands).values(), vars(known).values(), strict=True):
        assert x.min() < -2 * magnitude
        assert x.max() > 2 * magnitude
    exact = product * np.float64(scale)
    assert (np.abs(outcome.scores - exact) <= 2 * 2**-24 * np.abs(exact)).all()
    expected = assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form), magnitude=known.value)
    if weights in ("row", "log2-row"):  # a mean of clipped values; the lowest code is half a step below -a
        assert np.abs(expected).max() <= known.value * 2**bits / (2**bits - 1) * (1 + 1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_static_range_as_large_as_the_image_is_the_dynamic_one(weights: AttentionWeights) -> None:
    """Bit for bit: with powers of two for magnitudes 2a / M is rounded alike by both."""
    operands = Operands.random(np.random.default_rng(5), images=1)
    for x, largest in ((operands.q, 8), (operands.k, 4), (operands.v, 4)):
        assert np.abs(x).max() < largest
        x[0, 0, 0, 0] = -largest
    static = integer_attention(weights, 8, "residual", magnitudes=Magnitudes(8, 4, 4))(operands)
    dynamic = integer_attention(weights, 8, "residual")(operands)
    np.testing.assert_array_equal(static.scores, dynamic.scores)
    np.testing.assert_array_equal(static.y, dynamic.y)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_an_image_does_not_see_the_others(weights: AttentionWeights, bits: int, form: Form | None) -> None:
    """Rows r and r + B are one image: alone it has the same outputs, bit for bit."""
    operands = Operands.random(np.random.default_rng(6), images=2)
    operands.v[0] *= 10  # image 0 has larger ranges than image 1
    operands.q[2] *= 3
    run = integer_attention(weights, bits, form)
    both = run(operands)
    images = [run(operands.image(i)) for i in range(2)]
    for i, alone in enumerate(images):
        np.testing.assert_array_equal(both.y[i::2], alone.y)
        np.testing.assert_array_equal(both.weights[i::2], alone.weights)
    assert both.overflow == sum(alone.overflow for alone in images)


def test_both_rows_of_an_image_share_its_ranges() -> None:
    """With rows=1 each row is an image by itself."""
    operands = Operands.random(np.random.default_rng(7), images=1)
    for x in vars(operands).values():
        x[0] *= 10
    shared = integer_attention("row", 8)(operands).y
    apart = Attention(quantize_attention(attention_model(), "row", 8))(operands).y
    np.testing.assert_array_equal(shared[0], apart[0])
    assert not np.array_equal(shared[1], apart[1])


@pytest.mark.exact_products
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_very_peaked_attention(weights: AttentionWeights, bits: int, form: Form | None) -> None:
    """Weights far below the largest of their row are zero, or 2^-M with few bits."""
    operands = Operands.random(np.random.default_rng(8), peak=25)
    outcome = integer_attention(weights, bits, form)(operands)
    assert (outcome.weights == 0).any()
    assert (outcome.weights > 0.999).any()
    assert (outcome.weights[outcome.weights > 0] < 2**-24).any()
    assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_values_of_nothing_give_zeros(weights: AttentionWeights, form: Form | None) -> None:
    """And queries of nothing give equal weights; there is no division by zero."""
    operands = Operands.random(np.random.default_rng(9), peak=0)
    operands.v[:] = 0
    outcome = integer_attention(weights, 8, form)(operands)
    np.testing.assert_array_equal(outcome.y, np.zeros_like(outcome.y))
    np.testing.assert_array_equal(outcome.scores, np.zeros_like(outcome.scores))


@pytest.mark.exact_products
def test_equal_values_are_reproduced_by_the_normalized_quantizers() -> None:
    """A mean of equal values is that value, to half a step of V, whatever the weights."""
    operands = Operands.random(np.random.default_rng(10))
    operands.v[:] = operands.v[:, :, :1]
    a = oracle.image_magnitude(operands.v, ROWS)
    for weights in ("row", "log2-row"):
        for bits in BITS:
            y = integer_attention(weights, bits)(operands).y
            half_step = a / (2**bits - 1)
            # The largest magnitude itself lies half a step from its code, up to rounding.
            assert (np.abs(y - operands.v[:, :, :1]) <= half_step * (1 + 2**bits * RELATIVE)).all()


@pytest.mark.exact_products
@pytest.mark.parametrize("weights", WEIGHTS)
def test_random_shapes(weights: AttentionWeights) -> None:
    for seed in range(6):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        images, heads, queries, keys, width = (int(n) for n in rng.integers(1, [4, 4, 12, 40, 20]))
        bits, form = int(rng.choice(BITS)), FORMS[rng.integers(3)]
        operands = Operands.random(rng, images, heads, queries, keys, width, 10.0 ** rng.uniform(-2, 1))
        outcome = integer_attention(weights, bits, form)(operands)
        assert_like_oracle(outcome, operands, weights, bits, shift_and_sum(form))


@pytest.mark.parametrize("weights", ["log2-row", "row", "uniform"])
def test_more_bits_come_closer_to_float(operands: Operands, weights: AttentionWeights) -> None:
    """But the powers of two stay as far apart."""
    exact = Attention(attention_model())(operands).y
    errors = [np.abs(integer_attention(weights, bits)(operands).y - exact).mean() for bits in (8, 4, 2)]
    assert errors == sorted(errors)
    if weights != "log2-row":
        assert errors[0] < 0.02 * np.abs(exact).mean()


# A foreign model


def run_foreign(model: ir.Model, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    session: onnxruntime.InferenceSession = session_of(model)
    outputs: list[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: pictures})
    return outputs[0]


@pytest.mark.exact_products
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("attention", [TorchAttention, MultiheadAttention])
def test_a_foreign_vision_transformer_becomes_integer(attention: type[torch.nn.Module]) -> None:
    """Exported by torch, rows are images. No calibration: ranges are dynamic."""
    torch.manual_seed(0)
    model = exported(ViT(attention))
    pictures = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    exact = run_foreign(model, pictures)
    outputs = {
        form: run_foreign(quantize_attention(model, "row", 8, shift_and_sum=shift_and_sum(form, 0.06, (8,))), pictures)
        for form in FORMS
    }
    np.testing.assert_array_equal(outputs["residual"], outputs["duplicate"])
    for form in FORMS:
        # Probabilities, which differ from even ones by far more than eight bits in two of many products may move them.
        assert np.abs(outputs[form] - exact).max() < 0.02 * np.abs(exact - 0.1).max()
        assert not np.array_equal(outputs[form], exact)
    assert not np.array_equal(outputs[None], outputs["residual"])
