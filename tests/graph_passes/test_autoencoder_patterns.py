"""What the recognisers read off a decoder, and what they refuse and why."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from tiny_model import tiny_models

from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.graph_passes._autoencoder_patterns import Attention, Convolution, GroupNorm, PatternRefused, parse_layers


@pytest.fixture
def model() -> ir.Model:
    return build_decoder_graph(tiny_models()[1])


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def replace_constant(model: ir.Model, name: str, array: np.ndarray) -> None:
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def test_every_layer_is_found(model):
    layers = parse_layers(model.graph)
    # ch_mult (1, 2): 4 attentions of 2, 8 blocks of 2, a shortcut, an upsampling, and the first two and the last.
    counts = Counter(type(layer).__name__ for layer in layers)
    assert counts == {"Convolution": 29, "GroupNorm": 21, "Residual": 12, "Attention": 4, "Picture": 1}
    assert [layer.name for layer in layers if isinstance(layer, Convolution) and layer.upsampled] == [
        "decoder.up.1.upsample.conv"
    ]
    norms = [layer for layer in layers if isinstance(layer, GroupNorm)]
    assert {norm.groups for norm in norms} == {32}
    assert {norm.name for norm in norms if not norm.silu} == {
        layer.name.replace(".scores", ".norm") for layer in layers if isinstance(layer, Attention)
    }


def set_conv_stride(model):
    node(model, "decoder.conv_in").attributes["strides"] = ir.AttrInt64s("strides", [2, 2])


def set_odd_stride(model):
    node(model, "decoder.conv_in").attributes["strides"] = ir.AttrInt64s("strides", [1, 2])


def set_conv_without_padding(model):
    del node(model, "decoder.conv_in").attributes["pads"]


def set_group(model):
    node(model, "decoder.conv_in").attributes["group"] = ir.AttrInt64("group", 2)


def set_foreign_conv(model):
    node(model, "decoder.conv_in").domain = "elsewhere"


def set_foreign_norm(model):
    node(model, "decoder.norm_out").domain = "elsewhere"


def set_linear_upsampling(model):
    resize = next(node for node in model.graph if node.op_type == "Resize")
    resize.name = "upsample"
    resize.attributes["mode"] = ir.AttrString("mode", "linear")


def set_scales(model):
    next(node for node in model.graph if node.op_type == "Resize").name = "upsample"
    replace_constant(model, "upsample.scales", np.array([1, 1, 3, 3], np.float32))


def set_norm_affine(model):
    replace_constant(model, "group_norm.ones", np.full(32, 2, np.float32))


def set_unknown_operator(model):
    sigmoid = next(node for node in model.graph if node.op_type == "Sigmoid")
    sigmoid.name, sigmoid.op_type = "activation", "Tanh"


def set_second_reader(model):
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.name = "softmax"
    model.graph.append(ir.node("Identity", [softmax.outputs[0]]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_conv_stride, r"'decoder.conv_in' \(Conv\): expected pads \[0, 0, 1, 1\], found \[1, 1, 1, 1\]"),
        (set_odd_stride, r"'decoder.conv_in' \(Conv\): expected strides \[1, 1\], found \[1, 2\]"),
        (set_conv_without_padding, r"'decoder.conv_in' \(Conv\): a 3x3 convolution without padding"),
        (set_group, r"'decoder.conv_in' \(Conv\): expected an ungrouped"),
        (set_foreign_conv, r"'decoder.conv_in' \(Conv\): part of no layer"),
        (set_foreign_norm, r"norm_out.grouped' \(Reshape\): expected Split behind it"),
        (set_linear_upsampling, r"'upsample' \(Resize\): expected nearest upsampling x2, found .*linear"),
        (set_scales, r"'upsample' \(Resize\): expected nearest upsampling x2, found .*3.0"),
        (set_norm_affine, r"norm1' \(InstanceNormalization\): expected .* without an affine"),
        (set_unknown_operator, r"'activation' \(Tanh\): part of no layer"),
        (set_second_reader, r"'softmax' \(Softmax\): expected one reader of .*, found 2"),
    ],
)
def test_refusals_name_the_node_and_the_reason(model, change, reason):
    change(model)
    with pytest.raises(PatternRefused, match=reason):
        parse_layers(model.graph)
