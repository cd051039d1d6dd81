"""Linear layers are found by ONNX's own operators, and by nothing that only has their names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_model import tiny_source

from nextscale.export.graph_builder import Constants, add_output, finish, linear, new_builder
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.linear_layers import find_layers, layer_bias, linear_layer_shapes, linear_layers, nearest
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token


def one_layer() -> ir.Model:
    """y = x a + bias."""
    builder = new_builder("one")
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (4,)))
    constants = Constants(builder)
    x = builder.input("x", ir.DataType.FLOAT, ["R", "l", 3])
    y = linear(builder.op, constants, "a", x, torch.from_numpy(weight), torch.from_numpy(bias))
    add_output(builder, y, "y", ir.DataType.FLOAT, ["R", "l", 4])
    return finish(builder)


def test_a_matmul_of_another_domain_is_left_alone() -> None:
    model = one_layer()
    assert [layer.name for layer in linear_layers(model.graph)] == ["a"]
    next(node for node in model.graph if node.name == "a").domain = "elsewhere"
    assert linear_layers(model.graph) == []
    with pytest.raises(ValueError, match="no MatMul with a constant 2-D weight is named 'a'"):
        find_layers(model.graph, {"a"})


def test_an_add_of_another_domain_is_no_bias() -> None:
    model = one_layer()
    (layer,) = linear_layers(model.graph)
    assert layer_bias(layer) is not None
    next(node for node in model.graph if node.op_type == "Add").domain = "elsewhere"
    assert layer_bias(layer) is None
    quantized = quantize_linear_by_image(model, {"a": 1}, 8, nearest())
    assert "elsewhere" in {node.domain for node in quantized.graph}


def test_shapes_are_the_same_whatever_the_numbers() -> None:
    source = tiny_source(mlp_ratio=2.5)
    model = build_stage_graph(source.var, source.vqvae.quantize)
    expected = linear_layer_shapes(model.graph)
    assert expected["blocks.0.ffn.fc1"] == (160, 64)
    names = list(expected)
    one = np.ones(1, np.float32)
    mixed = quantize_linear(model, {names[0]: Range(-one, one)}, "stage")
    mixed = quantize_linear_by_token(mixed, dict.fromkeys(names[1:5], 8), 4, nearest(4), packed=True)
    mixed = quantize_linear_by_image(mixed, dict.fromkeys(names[5:9], 1), 8, nearest())
    assert linear_layer_shapes(mixed.graph) == expected
    assert {layer.name for layer in linear_layers(mixed.graph)} == {*names[9:]}
