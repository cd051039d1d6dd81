"""Patches of a convolution's input: their products with the kernel are the convolution."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_model import tiny_models

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.graph_passes._subpixel_upsample import subpixel_kernels
from nextscale.graph_passes.observe_inputs import Input
from nextscale.graph_passes.observe_patches import POSITIONS, Patches, patches_of

CHANNELS = 3


@pytest.fixture
def model() -> ir.Model:
    """A convolution of each kind, one after another."""
    rng = np.random.default_rng(0)
    builder = new_builder("convolutions")
    op, constants = builder.op, Constants(builder)
    h = builder.input("x", ir.DataType.FLOAT, ["B", CHANNELS, "H", "W"])
    for name, size in (("linear", 1), ("square", 3), ("strided", 3), ("upsampled", 3)):
        weight = constants(f"{name}.weight", rng.standard_normal((CHANNELS, CHANNELS, size, size)).astype(np.float32))
        bias = constants(f"{name}.bias", np.zeros(CHANNELS, np.float32))
        strides, pads = ([2, 2], [0, 0, 1, 1]) if name == "strided" else ([1, 1], [size // 2] * 4)
        if name == "upsampled":
            h = op.Resize(
                h,
                None,
                constants("scales", np.array([1, 1, 2, 2], np.float32)),
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
                _name="resize",
            )
        h = op.Conv(h, weight, bias, kernel_shape=[size, size], strides=strides, pads=pads, _name=name)
    add_output(builder, h, "y", ir.DataType.FLOAT, ["B", CHANNELS, "H", "W"])
    return finish(builder)


def weight_of(model: ir.Model, name: str) -> NDArray[np.float32]:
    constant = model.graph.initializers[f"{name}.weight"].const_value
    assert constant is not None
    return constant.numpy()


def random_feature(seed: int, largest: int = 12) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    height, width = 2 * rng.integers(1, largest // 2, 2)
    return rng.standard_normal((CHANNELS, height, width)).astype(np.float32)


def product(patches: Patches, x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return (patches.cut(x) @ weight.reshape(len(weight), -1).T).T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["linear", "square", "strided"])
def test_their_products_are_the_convolution(model: ir.Model, name: str, seed: int) -> None:
    x, weight = random_feature(seed), weight_of(model, name)
    padded = F.pad(torch.from_numpy(x), (0, 1, 0, 1)) if name == "strided" else torch.from_numpy(x)
    stride, padding = (2, 0) if name == "strided" else (1, weight.shape[2] // 2)
    wanted = F.conv2d(padded[None], torch.from_numpy(weight), stride=stride, padding=padding)[0].flatten(1).numpy()
    found = product(patches_of(model, [name])[name], x, weight)
    # Sums of 27 products of float32 in another order.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_all_four_small_kernels_read_them(model: ir.Model, seed: int) -> None:
    x, weight = random_feature(seed), weight_of(model, "upsampled")
    _, height, width = x.shape
    zoomed = torch.from_numpy(x.repeat(2, axis=1).repeat(2, axis=2))
    wanted = F.conv2d(zoomed[None], torch.from_numpy(weight), padding=1)[0].numpy()
    patches = patches_of(model, ["upsampled"])["upsampled"]
    for kernel in subpixel_kernels(weight):
        corners = product(patches, x, kernel.weight).reshape(-1, height + 1, width + 1)
        found = corners[:, kernel.i : kernel.i + height, kernel.j : kernel.j + width]
        np.testing.assert_allclose(found, wanted[:, kernel.i :: 2, kernel.j :: 2], rtol=0, atol=1e-4)


def test_they_are_of_what_the_kernels_read(model: ir.Model) -> None:
    found = patches_of(model, ["upsampled", "linear"])
    assert [patches.observer.input for patches in found.values()] == [Input("resize"), Input("linear")]
    assert [patches.length for patches in found.values()] == [4 * CHANNELS, CHANNELS]


@pytest.mark.parametrize("name", ["linear", "square", "strided", "upsampled"])
def test_of_a_large_picture_some_are_taken_always_the_same(model: ir.Model, name: str) -> None:
    x = np.arange(CHANNELS * 80 * 90, dtype=np.float32).reshape(CHANNELS, 80, 90) + 1
    patches = patches_of(model, [name])[name]
    found = patches.cut(x)
    assert found.shape == (POSITIONS, patches.length)
    np.testing.assert_array_equal(found, patches.cut(x))
    np.testing.assert_array_equal(patches.cut(2 * x), 2 * found)
    assert len(np.unique(found, axis=0)) == POSITIONS
    padding, stride = (1, 1) if patches.size == 2 else (patches.size // 2, 1)
    source = torch.from_numpy(x)[None]
    if name == "strided":
        source, padding, stride = F.pad(source, (0, 1, 0, 1)), 0, 2
    every = F.unfold(source, patches.size, padding=padding, stride=stride)[0].T.numpy()
    assert set(map(bytes, found)) <= set(map(bytes, np.ascontiguousarray(every)))


def test_those_of_a_decoder_are_found() -> None:
    model = build_decoder_graph(tiny_models()[1])
    found = patches_of(model, ["decoder.up.1.upsample.conv", "decoder.mid.attn_1.qkv"])
    assert [(patches.size, patches.channels) for patches in found.values()] == [(2, 64), (1, 64)]


def test_an_unknown_name_is_refused(model: ir.Model) -> None:
    with pytest.raises(ValueError, match="no convolution of the graph is named 'other'"):
        patches_of(model, ["linear", "other"])
