"""An encoder's features by the passes that make decoders int8: what is found in it, and how near the result is."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from autoencoder_runs import observe, run
from numpy.typing import NDArray
from tiny_model import tiny_models

from nextscale.export.var.encoder_graph import build_features_graph
from nextscale.graph_passes._autoencoder_patterns import Convolution, PatternRefused, Pixels, parse_layers
from nextscale.graph_passes._integer_convolution import integer_kernel
from nextscale.graph_passes.qparams import TWO_BYTE_BITS, ActivationQParams, Range
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    integer_convolutions,
    quantize_autoencoder,
    stock_and_fused_autoencoder,
    two_byte_convolutions,
)
from nextscale.models.var.sources import demo_source
from tests.goldens.parity import random_pictures

FLOAT = ("encoder.conv_in", "encoder.conv_out", "quant_conv")


@dataclass(frozen=True)
class Encoder:
    """A float encoder, pictures, and what was observed in them."""

    model: ir.Model
    images: NDArray[np.uint8]
    observed: AutoencoderObservation


@pytest.fixture(scope="module", params=["tiny", "demo"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    vqvae = tiny_models()[1] if request.param == "tiny" else demo_source("demo").vqvae
    model, images = build_features_graph(vqvae), random_pictures(vqvae.config)
    return Encoder(model, images, observe(model, images, moments=request.param == "tiny"))


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
    integer = integer_convolutions(encoder.model)
    assert names - set(integer) == floats
    assert two_byte_convolutions(encoder.model) == integer
    assert not encoder.observed.results
    stock, fused = stock_and_fused_autoencoder(encoder.model, encoder.observed)
    counts = Counter(node.op_type for node in stock.graph)
    assert counts["Conv"] == len(FLOAT)
    assert counts["QLinearConv"] == 0
    assert counts["MatMulIntegerToFloat"] >= 2 * len(integer)
    onnx.checker.check_model(ir.to_proto(stock), full_check=True)
    ones = sum(name.endswith((".qkv", ".proj_out")) for name in integer)
    counts = Counter(node.op_type for node in fused.graph)
    assert (counts["Conv"], counts["Linear"]) == (len(FLOAT), 2 * ones)
    assert counts["Convolution"] == len(integer) - ones
    onnx.checker.check_model(ir.to_proto(fused))


def test_features_are_near_those_in_float(encoder: Encoder, ops_library: Path) -> None:
    """On any CPU: products of seven bits and s8 do not saturate, with weights of full or of reduced range."""
    wanted = run(encoder.model, encoder.images)[0]
    stock, fused = stock_and_fused_autoencoder(encoder.model, encoder.observed)
    reduced = quantize_autoencoder(encoder.model, encoder.observed, reduce_range=True)
    found = run(stock, encoder.images)[0]
    np.testing.assert_array_equal(run(reduced, encoder.images)[0], found)
    by_fused = run(fused, encoder.images, library=ops_library)[0]
    for features in (found, by_fused):
        assert features.shape == wanted.shape
        assert relative_error(features, wanted) < 0.01
    # Both round the same sums to float32 in their own order.
    assert relative_error(by_fused, found) < 2e-3
    alone = run(fused, encoder.images[1:2], library=ops_library)[0]
    np.testing.assert_allclose(alone, by_fused[1:2], rtol=0, atol=1e-5)


def relative_error(found: NDArray, wanted: NDArray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize(
    "name",
    [
        "encoder.down.0.downsample.conv",
        "encoder.down.0.block.0.conv1",
        "encoder.mid.attn_1.qkv",
        "encoder.mid.block_1.conv2",
    ],
)
def test_a_convolution_is_its_integers_in_numpy(name: str) -> None:
    """The sums of what each output sees, in both bytes; around the picture that is zero."""
    model = build_features_graph(tiny_models()[1])
    images = random_pictures(tiny_models()[1].config)
    observed = observe(model, images)
    layer = next(layer for layer in parse_layers(model.graph) if layer.name == name)
    assert isinstance(layer, Convolution)
    stock = quantize_autoencoder(model, observed)
    products = [
        node
        for node in stock.graph
        if node.op_type == "MatMulIntegerToFloat" and str(node.name).split("/")[-1].startswith(name)
    ]
    assert len(products) == 2
    total = products[1].outputs[0].consumers()[0].outputs[0]
    for value, dtype in ((products[0].inputs[0], "UINT8"), (products[1].inputs[0], "UINT8"), (total, "FLOAT")):
        assert value is not None
        value.dtype, value.shape = ir.DataType[dtype], ir.Shape([None, None, None])
        stock.graph.outputs.append(value)
    coarse, fine, found = run(stock, images, *(str(value.name) for value in stock.graph.outputs[1:]))

    first = ActivationQParams.from_range(observed.inputs[name], TWO_BYTE_BITS)
    kernel = integer_kernel(layer.weight, layer.bias, first.fine())
    codes = np.stack([coarse, fine]).astype(np.float64) - np.array([first.zero_point[0], 64.0]).reshape(2, 1, 1, 1)
    columns = kernel.weight.codes.transpose(2, 3, 1, 0).reshape(-1, len(layer.weight)).astype(np.float64)
    wanted = (codes[0] + codes[1] / 128) @ columns * first.scale[0] * kernel.weight.scale + layer.bias
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert coarse.max() <= 2**TWO_BYTE_BITS
    assert np.ptp(codes[1]) > 100

    ks, stride = layer.kernel_size, layer.stride
    side = math.isqrt(coarse.shape[1])
    seen = codes.reshape(2, len(images), side, side, ks, ks, -1)
    if ks == 3:
        assert np.all(seen[:, :, :, -1, :, 2] == 0)
        assert np.all(seen[:, :, -1, :, 2] == 0)
        shift = 2 - stride  # a later output's first column is this one's second or third
        np.testing.assert_array_equal(seen[:, :, :, :-1, :, 2 - shift], seen[:, :, :, 1:, :, 0])
        np.testing.assert_array_equal(seen[:, :, :-1, :, 2 - shift], seen[:, :, 1:, :, 0])


def test_another_way_to_numbers_is_refused() -> None:
    model = build_features_graph(tiny_models()[1])
    div = next(node for node in model.graph if node.op_type == "Div")
    div.replace_input_with(1, ir.val("other", const_value=ir.tensor(np.float32(255), name="other")))
    with pytest.raises(PatternRefused, match=r"\(Cast\): expected x / 127.5 - 1, channels first, found \[255.0, 1.0\]"):
        parse_layers(model.graph)


def test_a_missing_range_is_refused(encoder: Encoder) -> None:
    some = dict(encoder.observed.inputs)
    del some["encoder.mid.block_1.conv1"]
    with pytest.raises(ValueError, match=r"no range .* of 1 nodes, .* 'encoder.mid.block_1.conv1'"):
        quantize_autoencoder(encoder.model, AutoencoderObservation(some, encoder.observed.results))


def test_ranges_are_of_numbers() -> None:
    """The range of a downsampling is that of the residual stream, which has both signs."""
    vqvae = tiny_models()[1]
    found = observe(build_features_graph(vqvae), random_pictures(vqvae.config)).inputs["encoder.down.0.downsample.conv"]
    assert isinstance(found, Range)
    assert found.minimum[0] < 0 < found.maximum[0]
