"""The int8 decoder: structure, refusals, checker, integer arithmetic in NumPy, the picture, batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import tiny_models
from torch import nn

from nextscale.export.autoencoder import NORM_EPS, NORM_GROUPS
from nextscale.export.decoder_graph import DecoderParts, build_decoder_graph
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes import channels_last
from nextscale.graph_passes.decoder_patterns import PatternRefused
from nextscale.graph_passes.integer_convolution import integer_kernel
from nextscale.graph_passes.observe_ranges import observe_ranges, observed_name
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.graph_passes.quantize_decoder import observed_nodes, quantize_decoder
from nextscale.graph_passes.subpixel_upsample import subpixel_kernels

SEED = 0


def run(model: ir.Model, f_hat: NDArray[np.float32], *outputs: str) -> list[NDArray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(outputs or None, {"f_hat": f_hat})


def observe(model: ir.Model, f_hat: NDArray[np.float32]) -> dict[str, Range]:
    names = observed_nodes(model)
    found = run(observe_ranges(model, names), f_hat, *(observed_name(name) for name in names))
    return {name: Range(ends[:1], ends[1:]) for name, ends in zip(names, found, strict=True)}


def psnr(a: NDArray, b: NDArray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    return build_decoder_graph(tiny_models(SEED)[1])


@pytest.fixture(scope="module")
def f_hat(decoder) -> NDArray[np.float32]:
    shape = (4, *decoder.graph.inputs[0].shape[1:])
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(decoder, f_hat) -> dict[str, Range]:
    return observe(decoder, f_hat)


@pytest.fixture(scope="module")
def quantized(decoder, ranges) -> ir.Model:
    return quantize_decoder(decoder, ranges)


def test_every_convolution_is_integer_and_valid(decoder, quantized):
    counts = Counter(node.op_type for node in quantized.graph)
    convs = [node for node in decoder.graph if node.op_type == "Conv"]
    linear = [node for node in convs if list(node.attributes.get_ints("kernel_shape")) == [1, 1]]
    assert counts["Conv"] == 0
    assert counts["MatMulIntegerToFloat"] == len(linear)
    assert counts["QLinearConv"] == len(convs) - len(linear) + 3  # one upsampling is four convolutions
    assert counts["Transpose"] == 1 + counts["Softmax"]
    for name, tensor in quantized.graph.initializers.items():
        if name.endswith(".codes"):
            assert tensor.const_value.dtype == ir.DataType.INT8
    onnx.checker.check_model(ir.to_proto(quantized), full_check=True)


def test_contract_and_source_stay(decoder, ranges, quantized):
    before = ir.to_proto(decoder).SerializeToString(deterministic=True)
    again = quantize_decoder(decoder, ranges)
    assert ir.to_proto(decoder).SerializeToString(deterministic=True) == before
    assert ir.to_proto(again) == ir.to_proto(quantized)
    source, result = ir.to_proto(decoder).graph, ir.to_proto(quantized).graph
    assert (list(source.input), list(source.output)) == (list(result.input), list(result.output))
    names = [node.name for node in result.node]
    values = [*(name for node in result.node for name in node.output), *(tensor.name for tensor in result.initializer)]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)


def test_missing_range_is_refused(decoder, ranges):
    fewer = {name: observed for name, observed in ranges.items() if name != "decoder.conv_in"}
    with pytest.raises(ValueError, match=r"no range .* of 1 nodes, .* 'decoder\.conv_in'"):
        quantize_decoder(decoder, fewer)


def test_integer_decoder_is_refused(quantized):
    with pytest.raises(PatternRefused, match=r"\(Transpose\): part of no layer of a decoder"):
        quantize_decoder(quantized, {})


@pytest.mark.parametrize("strip_bytes", [channels_last.STRIP_BYTES, 1 << 12])
def test_picture_is_close_and_independent_of_the_batch(decoder, ranges, f_hat, strip_bytes, monkeypatch):
    monkeypatch.setattr(channels_last, "STRIP_BYTES", strip_bytes)
    model = quantize_decoder(decoder, ranges)
    (expected,), (found,) = run(decoder, f_hat), run(model, f_hat)
    # Random weights amplify rounding; a wrong layer gives less than 15 dB, a trained decoder 45 (benchmarks/NOTES.md).
    assert psnr(expected, found) > 30
    for i in range(len(f_hat)):
        np.testing.assert_array_equal(run(model, f_hat[i : i + 1])[0][0], found[i])


def conv_oracle(x: NDArray, weight: NDArray, bias: NDArray, pads: list[int], qx: ActivationQParams) -> NDArray:
    """The real numbers that an integer convolution of codes [in, H, W] stands for, float64 [out, H', W']."""
    top, left, bottom, right = pads
    kernel = integer_kernel(weight, bias, qx)
    centred = np.pad(x.astype(np.int64) - qx.zero_point[0], ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(centred, weight.shape[2:], axis=(1, 2))
    total = np.einsum("ihwab,oiab->ohw", windows, kernel.weight.codes.astype(np.int64)) + kernel.bias[:, None, None]
    return total * (kernel.weight.scale.astype(np.float64) * qx.scale[0])[:, None, None]


def group_norm_silu_oracle(x: NDArray, norm: nn.GroupNorm) -> NDArray:
    groups = x.reshape(NORM_GROUPS, -1)
    centred = groups - groups.mean(1, keepdims=True)
    normalized = (centred / np.sqrt(groups.var(1, keepdims=True) + NORM_EPS)).reshape(x.shape)
    y = normalized * norm.weight.detach().numpy()[:, None, None] + norm.bias.detach().numpy()[:, None, None]
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strip_bytes", [channels_last.STRIP_BYTES, 1 << 10])
def test_integer_arithmetic(seed, strip_bytes, monkeypatch):
    """Convolution, GroupNorm, SiLU, upsampled convolution and picture against integers in NumPy."""
    monkeypatch.setattr(channels_last, "STRIP_BYTES", strip_bytes)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    height, width = (int(2 * side) for side in rng.integers(1, 6, 2))
    builder = new_builder("decoder")
    parts = DecoderParts(builder.op, Constants(builder))
    first, norm = nn.Conv2d(4, 64, 3, padding=1), nn.GroupNorm(NORM_GROUPS, 64, eps=NORM_EPS)
    upsample, last = nn.Conv2d(64, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    h = parts.conv("first", first, builder.input("f_hat", ir.DataType.FLOAT, ["B", 4, height, width]))
    h = parts.silu(parts.group_norm("norm", norm, h))
    scales = parts.constants("scales", np.array([1, 1, 2, 2], np.float32))
    modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    h = parts.conv("upsample", upsample, parts.op.Resize(h, None, scales, **modes, _name="resize"))
    images = parts.picture(parts.conv("last", last, h))
    add_output(builder, images, "images", ir.DataType.UINT8, ["B", 2 * height, 2 * width, 3])
    model = finish(builder)
    f_hat = rng.standard_normal((2, 4, height, width)).astype(np.float32)
    ranges = observe(model, f_hat)
    assert list(ranges) == ["first", "norm.grouped", "resize", "last"]
    found = run(quantize_decoder(model, ranges), f_hat)[0]

    q_in, q_first, q_norm, q_up = (ActivationQParams.from_range(observed) for observed in ranges.values())
    w_first, w_up, w_last = ((c.weight.detach().numpy(), c.bias.detach().numpy()) for c in (first, upsample, last))
    for x, picture in zip(f_hat, found, strict=True):
        h = q_first.quantize(conv_oracle(q_in.quantize(x), *w_first, [1] * 4, q_in))
        h = q_norm.quantize(group_norm_silu_oracle(q_first.dequantize(h), norm))
        up = np.empty((8, 2 * height, 2 * width), np.uint8)
        for k in subpixel_kernels(w_up[0]):
            up[:, k.i :: 2, k.j :: 2] = q_up.quantize(conv_oracle(h, k.weight, w_up[1], k.pads, q_norm))
        image = conv_oracle(up, *w_last, [1] * 4, q_up)
        expected = np.clip(np.round(127.5 * (image + 1)), 0, 255).transpose(1, 2, 0)
        # float32 against float64 flips a few ties of u8 rounding, each of which moves a pixel by one code at most.
        difference = np.abs(picture.astype(int) - expected)
        assert difference.max() <= 1, f"seed {seed}"
        assert difference.mean() < 0.02, f"seed {seed}"
