"""The int8 decoder: structure, refusals, checker, integer arithmetic in NumPy, the picture, batches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from autoencoder_runs import observe, psnr, run
from numpy.typing import NDArray
from tiny_model import tiny_models
from torch import nn

from nextscale.export.autoencoder_parts import AutoencoderParts, to_picture
from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.graph_passes import _channels_last as channels_last
from nextscale.graph_passes._autoencoder_patterns import PatternRefused
from nextscale.graph_passes._channel_steps import channel_steps
from nextscale.graph_passes._integer_convolution import IntegerKernel, integer_kernel
from nextscale.graph_passes._subpixel_upsample import subpixel_kernels
from nextscale.graph_passes.qparams import ActivationQParams, Range
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    integer_convolutions,
    quantize_autoencoder,
    stock_and_fused_autoencoder,
    two_byte_convolutions,
)
from nextscale.models.autoencoder import NORM_EPS, NORM_GROUPS

SEED = 0


@pytest.fixture(scope="module")
def decoder() -> ir.Model:
    return build_decoder_graph(tiny_models(SEED)[1])


@pytest.fixture(scope="module")
def f_hat(decoder) -> NDArray[np.float32]:
    shape = (4, *decoder.graph.inputs[0].shape[1:])
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(decoder, f_hat) -> AutoencoderObservation:
    return observe(decoder, f_hat)


@pytest.fixture(scope="module")
def quantized(decoder, ranges) -> ir.Model:
    return quantize_autoencoder(decoder, ranges)


FLOAT = ("post_quant_conv", "decoder.conv_in", "decoder.conv_out")


def test_convolutions_are_integer_and_valid(decoder, quantized):
    """All but those of f_hat, the shortcuts and the last."""
    counts = Counter(node.op_type for node in quantized.graph)
    convs = {
        str(node.name): list(node.attributes.get_ints("kernel_shape"))
        for node in decoder.graph.all_nodes()
        if node.op_type == "Conv"
    }
    integer = integer_convolutions(decoder)
    assert set(convs) - set(integer) == {name for name in convs if name in FLOAT or name.endswith("nin_shortcut")}
    assert counts["Conv"] == 2
    codes = [name for name in integer if name.endswith(".conv1")]  # a GroupNorm alone reads their results
    assert counts["QLinearConv"] == len(codes)
    assert counts["MatMulIntegerToFloat"] == len(integer) - len(codes) + 3  # one upsampling is four convolutions
    assert counts["Transpose"] == 1 + counts["Softmax"]
    for name, tensor in quantized.graph.initializers.items():
        if name.endswith(".codes"):
            assert tensor.const_value.dtype == ir.DataType.INT8
    onnx.checker.check_model(ir.to_proto(quantized), full_check=True)


def test_contract_and_source_stay(decoder, ranges, quantized):
    before = ir.to_proto(decoder).SerializeToString(deterministic=True)
    again = quantize_autoencoder(decoder, ranges)
    assert ir.to_proto(decoder).SerializeToString(deterministic=True) == before
    assert ir.to_proto(again) == ir.to_proto(quantized)
    source, result = ir.to_proto(decoder).graph, ir.to_proto(quantized).graph
    assert (list(source.input), list(source.output)) == (list(result.input), list(result.output))
    names = [node.name for node in result.node]
    values = [*(name for node in result.node for name in node.output), *(tensor.name for tensor in result.initializer)]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("kind", ["inputs", "results"])
def test_missing_range_is_refused(decoder, ranges, kind):
    found = dict(getattr(ranges, kind))
    missing, _ = found.popitem()
    with pytest.raises(ValueError, match=f"no range .* of 1 nodes, .* '{re.escape(missing)}'"):
        quantize_autoencoder(decoder, replace(ranges, **{kind: found}))


def test_integer_decoder_is_refused(quantized):
    with pytest.raises(PatternRefused, match=r"\(Transpose\): part of no layer of an encoder or decoder"):
        quantize_autoencoder(quantized, AutoencoderObservation({}, {}))


@pytest.mark.parametrize("strip_bytes", [channels_last.STRIP_BYTES, 1 << 12])
def test_picture_is_close_and_independent_of_the_batch(decoder, ranges, f_hat, strip_bytes, monkeypatch):
    monkeypatch.setattr(channels_last, "STRIP_BYTES", strip_bytes)
    model = quantize_autoencoder(decoder, ranges)
    (expected,), (found,) = run(decoder, f_hat), run(model, f_hat)
    # Random weights amplify rounding; a wrong layer gives less than 15 dB, a trained decoder 45 (benchmarks/NOTES.md).
    assert psnr(expected, found) > 30
    for i in range(len(f_hat)):
        np.testing.assert_array_equal(run(model, f_hat[i : i + 1])[0][0], found[i])


def test_narrow_convolutions_read_two_bytes(decoder, ranges, f_hat):
    """Where all do, what is left is the error of the weights, less than half of all."""
    weights = {str(node.name): node.inputs[1].shape[0] for node in decoder.graph.all_nodes() if node.op_type == "Conv"}
    widths = sorted({weights[name] for name in integer_convolutions(decoder)})
    for narrow in (0, widths[0], widths[-1]):
        expected = [name for name in integer_convolutions(decoder) if weights[name] <= narrow]
        assert two_byte_convolutions(decoder, narrow) == expected
    (expected,), (one,) = run(decoder, f_hat), run(quantize_autoencoder(decoder, ranges), f_hat)
    both = quantize_autoencoder(decoder, observe(decoder, f_hat, moments=True, narrow=widths[-1]))
    assert not [node for node in both.graph if node.op_type == "QLinearConv"]
    (found,) = run(both, f_hat)
    assert psnr(expected, found) > psnr(expected, one) + 6
    onnx.checker.check_model(ir.to_proto(both), full_check=True)


def test_dead_channels_do_not_spoil_the_others(f_hat):
    """Those that a GroupNorm always makes zero."""
    _, vqvae = tiny_models(SEED)
    with torch.no_grad():
        for norm in (module for module in vqvae.modules() if isinstance(module, nn.GroupNorm)):
            norm.weight[0] = norm.bias[0] = 0
    model = build_decoder_graph(vqvae)
    (expected,), (found,) = run(model, f_hat), run(quantize_autoencoder(model, observe(model, f_hat)), f_hat)
    assert psnr(expected, found) > 30


def conv_oracle(x: NDArray, weight: NDArray, bias: NDArray, pads: list[int], qx: ActivationQParams) -> NDArray:
    """The real numbers that an integer convolution of codes [in, H, W] stands for, float64 [out, H', W']."""
    kernel = integer_kernel(weight, bias, qx)
    step = kernel.weight.scale.astype(np.float64) * qx.scale[0]
    return integer_sums(x, kernel, pads, qx) * step[:, None, None]


def integer_sums(x: NDArray, kernel: IntegerKernel, pads: list[int], qx: ActivationQParams) -> NDArray:
    """int64 [out, H', W'] of codes [in, H, W]."""
    total = sums(x.astype(np.int64) - qx.zero_point[0], kernel.weight.codes.astype(np.int64), pads)
    return total + kernel.bias[:, None, None]


def sums(x: NDArray, weight: NDArray, pads: list[int]) -> NDArray:
    """A convolution of [in, H, W] with [out, in, ks, ks], zeros around it."""
    top, left, bottom, right = pads
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (top, bottom), (left, right))), weight.shape[2:], axis=(1, 2)
    )
    return np.einsum("ihwab,oiab->ohw", windows, weight)


def result_oracle(
    x: NDArray, weight: NDArray, bias: NDArray, pads: list[int], qx: ActivationQParams, observed: Range
) -> NDArray:
    """An integer convolution's result as its codes have it, each channel in its own range.

    One code moves the means of its group, and with them all that comes after: codes are rounded in float32, as the
    operators do.
    """
    kernel = integer_kernel(weight, bias - observed.minimum, qx)
    steps = np.maximum(span(observed), kernel.weight.scale * qx.scale[0])
    to_codes = (qx.scale[0] * (kernel.weight.scale / steps))[:, None, None]
    codes = np.clip(np.round(integer_sums(x, kernel, pads, qx).astype(np.float32) * to_codes), 0, 255)
    low, scale = (ends.astype(np.float64)[:, None, None] for ends in (observed.minimum, steps))
    return codes * scale + low


def span(observed: Range) -> NDArray[np.float32]:
    return np.maximum((observed.maximum - observed.minimum) / np.float32(255), np.finfo(np.float32).tiny)


def group_norm_silu_oracle(x: NDArray, norm: nn.GroupNorm) -> NDArray:
    groups = x.reshape(NORM_GROUPS, -1)
    centred = groups - groups.mean(1, keepdims=True)
    normalized = (centred / np.sqrt(groups.var(1, keepdims=True) + NORM_EPS)).reshape(x.shape)
    y = normalized * norm.weight.detach().numpy()[:, None, None] + norm.bias.detach().numpy()[:, None, None]
    return y / (1 + np.exp(-y))


@pytest.mark.exact_products
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strip_bytes", [channels_last.STRIP_BYTES, 1 << 10])
def test_integer_arithmetic(seed, strip_bytes, monkeypatch):
    monkeypatch.setattr(channels_last, "STRIP_BYTES", strip_bytes)
    check_integer_arithmetic(seed, quantize_autoencoder)


@pytest.mark.parametrize("seed", range(4))
def test_fused_integer_arithmetic(seed, ops_library):
    check_integer_arithmetic(seed, lambda *model: stock_and_fused_autoencoder(*model)[1], ops_library)


def check_integer_arithmetic(seed: int, emit: Callable[..., ir.Model], library: Path | None = None) -> None:
    """A residual block with a shortcut, an upsampled convolution and the picture against integers in NumPy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    height, width = (int(2 * side) for side in rng.integers(1, 6, 2))
    builder = new_builder("decoder")
    parts = AutoencoderParts(builder.op, Constants(builder))
    norms = [nn.GroupNorm(NORM_GROUPS, 64, eps=NORM_EPS) for _ in range(2)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    layers = {
        "first": nn.Conv2d(4, 64, 3, padding=1),
        "conv1": nn.Conv2d(64, 64, 3, padding=1),
        "conv2": nn.Conv2d(64, 32, 3, padding=1),
        "shortcut": nn.Conv2d(64, 32, 1),
        "upsample": nn.Conv2d(32, 8, 3, padding=1),
        "last": nn.Conv2d(8, 3, 3, padding=1),
    }
    with torch.no_grad():
        layers["conv1"].weight[0] = 0  # a channel that never changes has a range of nothing
    x = parts.conv("first", layers["first"], builder.input("f_hat", ir.DataType.FLOAT, ["B", 4, height, width]))
    h = parts.silu(parts.group_norm("norm1", norms[0], x))
    h = parts.silu(parts.group_norm("norm2", norms[1], parts.conv("conv1", layers["conv1"], h)))
    h, shortcut = parts.conv("conv2", layers["conv2"], h), parts.conv("shortcut", layers["shortcut"], x)
    h = parts.op.Add(h, shortcut, _name="add")
    scales = parts.constants("scales", np.array([1, 1, 2, 2], np.float32))
    modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    h = parts.conv("upsample", layers["upsample"], parts.op.Resize(h, None, scales, **modes, _name="resize"))
    images = to_picture(builder.op, parts.conv("last", layers["last"], h))
    add_output(builder, images, "images", ir.DataType.UINT8, ["B", 2 * height, 2 * width, 3])
    model = finish(builder)
    f_hat = rng.standard_normal((2, 4, height, width)).astype(np.float32)
    ranges = observe(model, f_hat)
    assert list(ranges.inputs) == ["conv1", "conv2", "upsample"]
    found = run(emit(model, ranges), f_hat, library=library)[0]

    assert list(ranges.results) == ["norm2.grouped"]
    w = {name: (conv.weight.detach().numpy(), conv.bias.detach().numpy()) for name, conv in layers.items()}
    of_channels = [
        channel_steps(observed, np.square(w[name][0]).sum((0, 2, 3))) for name, observed in ranges.inputs.items()
    ]
    (s1, q1), (s2, q2), (s_up, q_up) = (
        (steps[:, None, None], ActivationQParams(np.ones(1, np.float32), np.array([zero_point], np.uint8)))
        for steps, zero_point in of_channels
    )

    def floats(name: str, x: NDArray) -> NDArray:
        weight, bias = w[name]
        return sums(x, weight, [weight.shape[2] // 2] * 4) + bias[:, None, None]

    for x, picture in zip(f_hat, found, strict=True):
        first = floats("first", x)
        h = q1.quantize(group_norm_silu_oracle(first, norms[0]) / s1)
        h = result_oracle(h, w["conv1"][0] * s1, w["conv1"][1], [1] * 4, q1, *ranges.results.values())
        h = q2.quantize(group_norm_silu_oracle(h, norms[1]) / s2)
        h = conv_oracle(h, w["conv2"][0] * s2, w["conv2"][1], [1] * 4, q2) + floats("shortcut", first)
        h = q_up.quantize(h / s_up)
        up = np.empty((8, 2 * height, 2 * width))
        for k in subpixel_kernels(w["upsample"][0] * s_up):
            up[:, k.i :: 2, k.j :: 2] = conv_oracle(h, k.weight, w["upsample"][1], k.pads, q_up)
        expected = np.clip(np.round(127.5 * (floats("last", up) + 1)), 0, 255).transpose(1, 2, 0)
        # float32 against float64 flips a few ties of u8 rounding, each of which moves a pixel by one code at most.
        difference = np.abs(picture.astype(int) - expected)
        assert difference.max() <= 1, f"seed {seed}"
        assert difference.mean() < 0.02, f"seed {seed}"
