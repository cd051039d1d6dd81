"""The fused int8 decoder beside the stock one: structure, shared constants, the same pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from autoencoder_runs import observe, run
from numpy.typing import NDArray
from tiny_model import tiny_models

from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    integer_convolutions,
    stock_and_fused_autoencoder,
)
from nextscale.models.var.sources import demo_source

SEED = 0
NARROW = 32  # channels: those of the last resolution, and of others
BLOCK = "decoder.mid.block_1"


@dataclass(frozen=True)
class Decoder:
    """A float decoder, latents, and what was observed in them."""

    model: ir.Model
    f_hat: NDArray[np.float32]
    ranges: AutoencoderObservation


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    model = build_decoder_graph(tiny_models(SEED)[1])
    shape = (32, *model.graph.inputs[0].shape[1:])
    f_hat = np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)
    return Decoder(model, f_hat, observe(model, f_hat))


@pytest.fixture(scope="module")
def demo() -> Decoder:
    """A trained decoder and the latents of random tokens."""
    vqvae = demo_source("demo").vqvae
    sizes = [pn * pn for pn in vqvae.quantize.patch_nums]
    tokens = torch.from_numpy(np.random.default_rng(SEED).integers(0, vqvae.config.vocab_size, (2, sum(sizes))))
    with torch.no_grad():
        f_hat = vqvae.quantize.accumulate(tokens.split(sizes, dim=1))[0].numpy()
    model = build_decoder_graph(vqvae)
    return Decoder(model, f_hat, observe(model, f_hat))


@pytest.fixture(scope="module")
def narrow(tiny: Decoder) -> Decoder:
    """One whose narrow convolutions read two bytes."""
    return replace(tiny, ranges=observe(tiny.model, tiny.f_hat, moments=True, narrow=NARROW))


@pytest.fixture(params=["tiny", "demo", "narrow"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return request.getfixturevalue(request.param)


def kernel_sizes(model: ir.Model) -> dict[str, int]:
    return {
        str(node.name): node.attributes.get_ints("kernel_shape")[0]
        for node in model.graph.all_nodes()
        if node.op_type == "Conv"
    }


def test_fused_operators_do_the_work_and_the_graph_is_valid(tiny):
    fused = stock_and_fused_autoencoder(tiny.model, tiny.ranges)[1]
    counts = Counter(node.op_type for node in fused.graph)
    sizes, integer = kernel_sizes(tiny.model), integer_convolutions(tiny.model)
    assert counts["Convolution"] == sum(sizes[name] == 3 for name in integer)
    assert counts["Linear"] == sum(sizes[name] == 1 for name in integer)
    assert counts["MatMulIntegerToFloat"] == 0
    assert counts["GroupNorm"] + counts["CodesGroupNorm"] == 21
    assert counts["AddCodes"] == 0  # convolutions add what a residual adds
    for slow in ("QLinearConv", "QuickGelu", "Cast", "Concat"):
        assert slow not in counts
    assert {node.domain for node in fused.graph} == {"", "nextscale"}
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)


def test_contract_and_source_stay(tiny):
    before = ir.to_proto(tiny.model).SerializeToString(deterministic=True)
    fused = stock_and_fused_autoencoder(tiny.model, tiny.ranges)[1]
    assert ir.to_proto(tiny.model).SerializeToString(deterministic=True) == before
    assert ir.to_proto(stock_and_fused_autoencoder(tiny.model, tiny.ranges)[1]) == ir.to_proto(fused)
    source, result = ir.to_proto(tiny.model).graph, ir.to_proto(fused).graph
    assert (list(source.input), list(source.output)) == (list(result.input), list(result.output))
    names = [node.name for node in result.node]
    values = [name for node in result.node for name in node.output if name]
    values += [tensor.name for tensor in result.initializer]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_weights_are_the_same_tensors(decoder, reduce_range):
    stock, fused = stock_and_fused_autoencoder(decoder.model, decoder.ranges, reduce_range)
    tensors, of_fused = (
        {id(v.const_value): v.const_value for v in model.graph.initializers.values()} for model in (stock, fused)
    )
    new = sum(tensor.nbytes for key, tensor in of_fused.items() if key not in tensors)
    assert new <= 0.05 * sum(tensor.nbytes for tensor in tensors.values())
    kernels = [name for name in stock.graph.initializers if name.endswith(".codes")]
    assert len(kernels) >= len(integer_convolutions(decoder.model))
    integer_biases = [f"{node.name}.bias" for node in stock.graph if node.op_type == "QLinearConv"]
    assert integer_biases
    for shared in (*kernels, *integer_biases):
        assert fused.graph.initializers[shared].const_value is stock.graph.initializers[shared].const_value


def result(model: ir.Model, op_type: str, name: str) -> ir.Value:
    """What the first of these nodes makes, whose names begin so."""
    node = next(node for node in model.graph if node.op_type == op_type and str(node.name).startswith(name))
    return next(value for value in node.outputs if value.name)


def outputs(
    model: ir.Model, f_hat: NDArray[np.float32], values: list[ir.Value], library: Path | None = None
) -> list[NDArray]:
    model.graph.outputs.extend(values)
    return run(model, f_hat, *(str(value.name) for value in values), library=library)


@pytest.mark.parametrize("decoder", ["tiny", "demo"], indirect=True)
def test_codes_are_those_of_the_stock_graph(decoder, ops_library):
    """In a reduced range no product saturates: both have the same integers, and their floats differ in rounding only.

    That moves a code by one where a number lies on a tie; in the first block, before such codes are read again and
    again, of less than one in a thousand numbers.
    """
    stock, fused = stock_and_fused_autoencoder(decoder.model, decoder.ranges, reduce_range=True)
    of_stock = [result(stock, "QLinearConv", f"{BLOCK}.conv1"), result(stock, "Add", f"{BLOCK}.add")]
    of_fused = [result(fused, "Convolution", f"{BLOCK}.conv{i}") for i in (1, 2)]  # the second adds the residual
    expected = outputs(stock, decoder.f_hat, of_stock)
    found = outputs(fused, decoder.f_hat, of_fused, ops_library)
    difference = np.abs(expected[0].astype(int) - found[0])
    assert difference.max() <= 1
    assert np.mean(difference) < 1e-3
    assert (expected[1] - found[1].reshape(expected[1].shape)).std() < 0.01 * expected[1].std()


@pytest.mark.parametrize("reduce_range", [True, pytest.param(False, marks=pytest.mark.exact_products)])
def test_pictures_are_as_close_to_full_precision_as_those_of_the_stock_graph(decoder, ops_library, reduce_range):
    """Rounding in different places gives different errors of one size: their squares differ by chance.

    In parts of 8x8 pixels, the differences' mean must be within four of its standard errors.
    """
    stock, fused = stock_and_fused_autoencoder(decoder.model, decoder.ranges, reduce_range)
    (exact,), (expected,) = run(decoder.model, decoder.f_hat), run(stock, decoder.f_hat)
    (found,) = run(fused, decoder.f_hat, library=ops_library)
    of_stock, of_fused = (squares_of_parts(images, exact) for images in (expected, found))
    differences = of_fused - of_stock
    assert of_stock.mean() < 255**2 / 10**3.5  # 35 dB
    assert differences.mean() <= 4 * differences.std() / np.sqrt(len(differences))


def squares_of_parts(images: NDArray[np.uint8], exact: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean squared error of each part of 8x8 pixels."""
    squares = np.square(images.astype(np.float64) - exact)
    batch, height, width, colours = squares.shape
    return squares.reshape(batch, height // 8, 8, width // 8, 8, colours).mean((2, 4, 5)).ravel()


def test_pictures_do_not_depend_on_threads_or_batch(decoder, ops_library):
    fused = stock_and_fused_autoencoder(decoder.model, decoder.ranges, reduce_range=True)[1]
    (expected,) = run(fused, decoder.f_hat, library=ops_library)
    np.testing.assert_array_equal(run(fused, decoder.f_hat, library=ops_library, threads=2)[0], expected)
    for i in range(2):
        np.testing.assert_array_equal(run(fused, decoder.f_hat[i : i + 1], library=ops_library)[0][0], expected[i])
