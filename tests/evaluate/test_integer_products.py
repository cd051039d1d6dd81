"""What is found in graphs that the passes make, and that exposing it changes nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_model import no_progress, tiny_options, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.evaluate.integer_products import expose_operands, integer_products, output_name, reduction_rows
from nextscale.graph_passes.linear_layers import CODES_SUFFIX
from nextscale.runtime import Bundle

# Recipes that between them have every form of product.
RECIPES = ("default", "static-w8a8", "rtn-w8a8", "nearest-w4a4")


@pytest.fixture(scope="module", params=RECIPES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("products") / request.param
    return build_bundle(tiny_source(), folder, tiny_options(request.param, encoder=False), no_progress)


def test_every_integer_weight_is_found(built: Bundle) -> None:
    for graph in ("stage", "decoder"):
        model = ir.load(built.graph_path(graph))
        names = {product.name for product in integer_products(model) if product.weight.const_value is not None}
        stored = [name for name in built.manifest.recipe["kernels"][graph] if not packed(model, name)]
        assert names == set(stored)


def packed(model: ir.Model, name: str) -> bool:
    return f"{name}{CODES_SUFFIX}" not in model.graph.initializers


def test_attention_is_found_where_it_is_integer(built: Bundle) -> None:
    products = integer_products(ir.load(built.graph_path("stage")))
    kinds = Counter(product.kind for product in products)
    names = {product.name for product in products if product.kind in ("scores", "mix")}
    integer = built.manifest.recipe["attention"]["products"] == "integer"
    assert (kinds["scores"], kinds["mix"] > 0) == ((2, True) if integer else (0, False))
    assert names == ({f"blocks.{i}.attn.{part}" for i in (0, 1) for part in ("scores", "mix")} if integer else set())


def test_exposed_operands_are_u8_and_s8(built: Bundle) -> None:
    for graph in ("stage", "decoder"):
        model = ir.load(built.graph_path(graph))
        exposed = expose_operands(model)
        outputs = {value.name: value for value in exposed.graph.outputs}
        for product in integer_products(model):
            if product.is_observable and product.weight.const_value is None:
                assert outputs[output_name(product.weight)].dtype == ir.DataType.INT8
            if product.is_observable:
                assert outputs[output_name(product.codes)].dtype == ir.DataType.UINT8
        onnx.checker.check_model(ir.to_proto(without_weights(exposed)))
        again = expose_operands(exposed)
        assert [value.name for value in again.graph.outputs] == [value.name for value in exposed.graph.outputs]
        assert len(list(again.graph)) == len(list(exposed.graph))


def test_an_operator_of_another_domain_is_no_product(built: Bundle) -> None:
    for graph in ("stage", "decoder"):
        model = ir.load(built.graph_path(graph))
        for product in integer_products(model):
            product.node.domain = "elsewhere"
        assert integer_products(model) == []


def without_weights(model: ir.Model) -> ir.Model:
    """The checker wants to see no file that it cannot find from the working folder."""
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=name)
    return model


def test_a_convolution_reduces_over_positions_and_then_channels() -> None:
    weight = np.arange(2 * 3 * 2 * 2, dtype=np.int8).reshape(2, 3, 2, 2)
    rows = reduction_rows(weight)
    assert rows[1].tolist() == [weight[1, c, y, x] for y in (0, 1) for x in (0, 1) for c in (0, 1, 2)]
    matrix = np.arange(6, dtype=np.int8).reshape(3, 2)
    assert reduction_rows(matrix).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_a_float_graph_has_none(fp32_bundle: Path) -> None:
    for graph in ("stage", "decoder"):
        assert integer_products(ir.load(fp32_bundle / f"{graph}.onnx")) == []
