from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_model import tiny_source

from nextscale.export.generate_graph import build_generate_graph
from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.observe_attention import attention_products, observe_attention, output_names
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
from nextscale.runtime._var_request import var_request

from .attention_model import (
    FORMS,
    MIX,
    ROWS,
    STAGE,
    WEIGHTS,
    Form,
    Operands,
    attention_model,
    session_of,
    shift_and_sum,
)


def quantized(weights: Any = "row", form: Form | None = None, static: bool = False) -> ir.Model:
    magnitudes = {MIX: Magnitudes(8.0, 4.0, 3.0)} if static else None
    return quantize_attention(attention_model(), weights, 6, ROWS, magnitudes, shift_and_sum(form), "stage")


@pytest.fixture(params=["float", *WEIGHTS, *filter(None, FORMS)])
def model(request: pytest.FixtureRequest) -> ir.Model:
    """One attention, in float or as any kind of integer piece; with a counter where there is shift-and-sum."""
    if request.param == "float":
        return attention_model()
    return quantized(form=request.param) if request.param in FORMS else quantized(request.param)


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def run(model: ir.Model, operands: Operands) -> dict[str, np.ndarray]:
    session = session_of(model)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {**vars(operands), "stage": np.array(STAGE)}), strict=True))


def test_a_softmax_of_another_domain_is_left_alone(model: ir.Model) -> None:
    for node in model.graph:
        node.domain = "elsewhere" if node.op_type == "Softmax" else node.domain
    before = serialized(model)
    assert serialized(observe_attention(model)) == before


def test_each_attention_gets_three_outputs_and_nothing_else_changes(model: ir.Model) -> None:
    before = serialized(model)
    count, outputs = len(list(model.graph)), [value.name for value in model.graph.outputs]
    observed = observe_attention(model)
    assert [value.name for value in observed.graph.outputs] == [*outputs, *output_names(MIX)]
    assert [node.op_type for node in list(observed.graph)[count:]] == ["Identity"] * 3
    assert serialized(model) == before


def test_the_values_are_found(model: ir.Model) -> None:
    (found,) = attention_products(model.graph)
    softmax = found.weights.producer()
    assert softmax is not None
    assert (found.name, softmax.name) == (MIX, "softmax")
    assert (found.value.name, found.product.name) == ("v", "y")
    assert found.integer == (len(list(model.graph)) > 5)


def test_once_is_enough(model: ir.Model) -> None:
    once = observe_attention(model)
    assert serialized(observe_attention(once)) == serialized(once)


def test_the_graph_is_valid_before_and_after(model: ir.Model) -> None:
    for checked in (model, observe_attention(model)):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


def test_values_are_the_graphs_own_for_random_shapes(model: ir.Model) -> None:
    """A is the softmax, V the input as it was, and the product what the graph gives without the observers."""
    observed = observe_attention(model)
    for seed in range(4):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        images, heads, queries, keys, width = (int(n) for n in rng.integers(1, 7, 5))
        operands = Operands.random(rng, images, heads, queries, keys, width)
        found = run(observed, operands)
        weights, value, product = (found[name] for name in output_names(MIX))
        assert weights.shape == (ROWS * images, heads, queries, keys)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=keys * 2**-23)
        np.testing.assert_array_equal(value, operands.v)
        np.testing.assert_array_equal(product, found["y"])
        np.testing.assert_array_equal(product, run(model, operands)["y"])


def test_constants_of_the_piece() -> None:
    (dynamic,), (static,) = (
        attention_products(m.graph) for m in (quantized(), quantized(form="residual", static=True))
    )
    assert [dynamic.constant(name) for name in ("value_scale", "theta", "places")] == [None] * 3
    assert static.constant("value_scale") == np.float32(2 * 3.0 / 63)
    how = shift_and_sum("residual")
    assert how is not None
    assert static.constant("theta") == np.float32(how.theta)
    places = static.constant("places")
    assert places is not None
    assert places.tolist() == list(how.places)


@pytest.mark.parametrize("integer", [False, True], ids=["float", "integer"])
def test_every_block_of_the_stage_graph_is_observed(integer: bool) -> None:
    source = tiny_source()
    model = build_stage_graph(source.var, source.vqvae.quantize)
    if integer:
        model = quantize_attention(model, "row", 8, 2)
    names = [found.name for found in attention_products(model.graph)]
    assert names == [f"blocks.{i}.attn.mix" for i in range(source.var.config.depth)]


def test_another_softmax_is_no_attention() -> None:
    builder = new_builder("classifier")
    x = builder.input("x", ir.DataType.FLOAT, ["B", 3])
    add_output(builder, builder.op.Softmax(x, axis=-1), "y", ir.DataType.FLOAT, ["B", 3])
    model = finish(builder)
    assert attention_products(model.graph) == []
    assert serialized(observe_attention(model)) == serialized(model)


def test_an_attention_in_a_subgraph_is_refused() -> None:
    source = tiny_source()
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    model = build_generate_graph(stage, decoder, source.var.config.num_stages, var_request(source.model_info()))
    with pytest.raises(ValueError, match=r"attn\.mix is in a subgraph"):
        observe_attention(model)


def test_a_piece_with_two_results_is_refused() -> None:
    model = quantized()
    node = next(node for node in model.graph if str(node.name).startswith(f"{MIX}/integer/"))
    node.outputs[0].name = "another"
    with pytest.raises(ValueError, match=r"mix: results of its integer product: expected 1, found 2 \(another, y\)"):
        observe_attention(model)


def test_a_piece_with_two_values_is_refused() -> None:
    model = quantized()
    reader = next(
        node
        for node in model.graph
        if str(node.name).startswith(f"{MIX}/integer/") and "v" in {i.name for i in node.inputs if i}
    )
    key = next(value for value in model.graph.inputs if value.name == "k")
    at = [value is not None and value.name == "v" for value in reader.inputs].index(True)
    reader.replace_input_with(at, key)
    with pytest.raises(ValueError, match=r"mix: values, which its integer product reads: expected 1, found 2"):
        observe_attention(model)
