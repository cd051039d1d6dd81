"""An encoder's features by the passes that make decoders int8: what is found in it, and how near the result is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decoder_runs import observe, run
from numpy.typing import NDArray
from tiny_model import tiny_models

from nextscale.export.var.encoder_graph import build_features_graph
from nextscale.graph_passes._decoder_patterns import Convolution, PatternRefused, Pixels, parse_layers
from nextscale.graph_passes._integer_convolution import integer_kernel
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.graph_passes.quantize_decoder import (
    DecoderRanges,
    integer_convolutions,
    quantize_decoder,
    stock_and_fused_decoder,
)
from nextscale.models.sources import demo_source
from tests.goldens.parity import random_pictures

FLOAT = ("encoder.conv_in", "encoder.conv_out", "quant_conv")


@dataclass(frozen=True)
class Encoder:
    """A float encoder, pictures, and what was observed in them."""

    model: ir.Model
    images: NDArray[np.uint8]
    ranges: DecoderRanges


@pytest.fixture(scope="module", params=["tiny", "demo"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    vqvae = tiny_models()[1] if request.param == "tiny" else demo_source("demo").vqvae
    model, images = build_features_graph(vqvae), random_pictures(vqvae.config)
    return Encoder(model, images, observe(model, images))


def test_every_layer_is_found() -> None:
    layers = parse_layers(build_features_graph(tiny_models()[1]).graph)
    # ch_mult (1, 2): 4 + 2 blocks of 2 and a shortcut, 2 + 1 attentions of 2, a downsampling, the first and last two.
    counts = Counter(type(layer).__name__ for layer in layers)
    assert counts == {"Pixels": 1, "Convolution": 23, "GroupNorm": 16, "Residual": 9, "Attention": 3}
    assert isinstance(layers[0], Pixels)
    strided = [layer.name for layer in layers if isinstance(layer, Convolution) and layer.stride == 2]
    assert strided == ["encoder.down.0.downsample.conv"]


def test_convolutions_are_integer_and_valid(encoder: Encoder) -> None:
    names = {str(node.name) for node in encoder.model.graph if node.op_type == "Conv"}
    floats = {name for name in names if name in FLOAT or name.endswith("nin_shortcut")}
    assert names - set(integer_convolutions(encoder.model)) == floats
    for graph in stock_and_fused_decoder(encoder.model, encoder.ranges):
        counts = Counter(node.op_type for node in graph.graph)
        assert counts["Conv"] == len(FLOAT)
        assert counts["QLinearConv"] + counts["Convolution"] == len(encoder.ranges.results)
        onnx.checker.check_model(ir.to_proto(graph), full_check=graph.graph.opset_imports.get("nextscale") is None)


def test_features_are_near_those_in_float(encoder: Encoder, ops_library: Path) -> None:
    """Neither reduced weights nor those of the fused graph make a product that saturates on any CPU."""
    wanted = run(encoder.model, encoder.images)[0]
    reduced = quantize_decoder(encoder.model, encoder.ranges, reduce_range=True)
    _, fused = stock_and_fused_decoder(encoder.model, encoder.ranges)
    # Weights of reduced range have steps of up to twice the size.
    for found, most in (
        (run(reduced, encoder.images)[0], 0.1),
        (run(fused, encoder.images, library=ops_library)[0], 0.05),
    ):
        assert found.shape == wanted.shape
        assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < most
    alone = run(fused, encoder.images[1:2], library=ops_library)[0]
    np.testing.assert_allclose(alone, run(fused, encoder.images, library=ops_library)[0][1:2], rtol=0, atol=1e-5)


def test_a_convolution_of_stride_2_is_its_integers_in_numpy(ops_library: Path) -> None:
    """A graph of a picture, a first convolution, one of stride 2 and a last one."""
    vqvae = tiny_models()[1]
    model = build_features_graph(vqvae)
    images = random_pictures(vqvae.config)
    ranges = observe(model, images)
    name = "encoder.down.0.downsample.conv"
    layer = next(layer for layer in parse_layers(model.graph) if layer.name == name)
    assert isinstance(layer, Convolution)
    _, fused = stock_and_fused_decoder(model, ranges)
    node = next(node for node in fused.graph if node.name is not None and node.name.endswith(name))
    codes_name, result = str(node.inputs[0].name), node.outputs[0]
    fused.graph.outputs.extend([node.inputs[0], result])
    for value, dtype in ((node.inputs[0], ir.DataType.UINT8), (result, ir.DataType.FLOAT)):
        value.dtype, value.shape = dtype, ir.Shape([None, None, None])
    rows, found = run(fused, images, codes_name, str(result.name), library=ops_library)

    activation = ActivationQParams.from_range(ranges.inputs[name])
    channels = layer.weight.shape[1]
    kernel = integer_kernel(layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), -1), layer.bias, activation)
    side = vqvae.config.image_size
    codes = rows.reshape(len(images), side // 2, side // 2, 3, 3, channels).astype(np.int64)
    # What stands beyond the right and lower border is the code of zero; what two outputs see is the same.
    assert np.all(codes[:, :, -1, :, 2] == activation.zero_point[0])
    assert np.all(codes[:, -1, :, 2] == activation.zero_point[0])
    np.testing.assert_array_equal(codes[:, :, :-1, :, 2], codes[:, :, 1:, :, 0])
    np.testing.assert_array_equal(codes[:, :-1, :, 2], codes[:, 1:, :, 0])
    sums = (codes.reshape(*rows.shape) - int(activation.zero_point[0])) @ kernel.weight.codes.T.astype(np.int64)
    wanted = sums * np.float64(activation.scale[0]) * kernel.weight.scale + layer.bias
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_another_way_to_numbers_is_refused() -> None:
    model = build_features_graph(tiny_models()[1])
    div = next(node for node in model.graph if node.op_type == "Div")
    div.replace_input_with(1, ir.val("other", const_value=ir.tensor(np.float32(255), name="other")))
    with pytest.raises(PatternRefused, match=r"\(Cast\): expected x / 127.5 - 1, channels first, found \[255.0, 1.0\]"):
        parse_layers(model.graph)


def test_a_missing_range_is_refused(encoder: Encoder) -> None:
    some = dict(encoder.ranges.inputs)
    del some["encoder.mid.block_1.conv1"]
    with pytest.raises(ValueError, match=r"no range .* of 1 nodes, .* 'encoder.mid.block_1.conv1'"):
        quantize_decoder(encoder.model, DecoderRanges(some, encoder.ranges.results))


def test_ranges_are_of_numbers() -> None:
    """The range of a downsampling is that of the residual stream, which has both signs."""
    vqvae = tiny_models()[1]
    found = observe(build_features_graph(vqvae), random_pictures(vqvae.config)).inputs["encoder.down.0.downsample.conv"]
    assert isinstance(found, Range)
    assert found.minimum[0] < 0 < found.maximum[0]
