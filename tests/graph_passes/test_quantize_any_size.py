"""Int8 decoders and encoders whose pictures have any size: Infinity's, with stock and with fused operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from autoencoder_runs import psnr, run
from numpy.typing import NDArray
from tiny_model import no_progress

from nextscale.compiler.fusion_certificate import certify
from nextscale.compiler.observe_autoencoder import observe_autoencoder
from nextscale.export.infinity.decoder_graph import build_decoder_graph
from nextscale.export.infinity.encoder_graph import build_features_graph
from nextscale.graph_passes.quantize_autoencoder import (
    AutoencoderObservation,
    integer_convolutions,
    quantize_autoencoder,
    stock_and_fused_autoencoder,
    two_byte_convolutions,
)
from nextscale.models.infinity.bsq_vae import BSQVAEConfig
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.runtime._session import SessionOptions

CONFIG = BSQVAEConfig(8, 32, (1, 2, 2), num_res_blocks=1)
CODE = CONFIG.latent_channels**-0.5
LATENT_SIZES = ((4, 4), (6, 3), (1, 5), (16, 16))


@dataclass(frozen=True)
class Half:
    """A float decoder or encoder, what it reads by size, and what was observed of all of that."""

    model: ir.Model
    inputs: list[NDArray]
    observed: AutoencoderObservation


def observed(model: ir.Model, inputs: list[NDArray]) -> Half:
    ones = [one for batch in inputs for one in batch]
    return Half(model, inputs, observe_autoencoder(model, ones, Path(), SessionOptions(threads=1), no_progress))


@pytest.fixture(scope="module")
def decoder() -> Half:
    rng = np.random.default_rng(0)
    inputs = [
        (CODE * rng.standard_normal((2, CONFIG.latent_channels, *size))).astype(np.float32) for size in LATENT_SIZES
    ]
    model = build_decoder_graph(random_bsq_vae(CONFIG))
    return observed(model, inputs)


@pytest.fixture(scope="module")
def encoder() -> Half:
    rng, side = np.random.default_rng(0), CONFIG.downsample
    inputs = [rng.integers(0, 256, (2, side * h, side * w, 3)).astype(np.uint8) for h, w in LATENT_SIZES]
    model = build_features_graph(random_bsq_vae(CONFIG))
    return observed(model, inputs)


def convolutions(model: ir.Model) -> set[str]:
    return {str(node.name) for node in model.graph if node.op_type == "Conv"}


def test_all_convolutions_of_the_decoder_but_the_outermost_and_shortcuts_are_integer(decoder: Half) -> None:
    integer = set(integer_convolutions(decoder.model))
    floats = convolutions(decoder.model) - integer
    assert {name for name in floats if not name.endswith("nin_shortcut")} == {"decoder.conv_in", "decoder.conv_out"}
    # 2 + 3 * 2 blocks of two, and two upsamplings.
    assert len(integer) == 18
    stock, fused = stock_and_fused_autoencoder(decoder.model, decoder.observed)
    assert convolutions(stock) == {"decoder.conv_in"}
    counts = Counter(node.op_type for node in fused.graph)
    assert counts["Convolution"] == len(integer)
    assert counts["MatMulIntegerToFloat"] == counts["QLinearConv"] == 0
    for model in (stock, fused):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_all_convolutions_of_the_encoder_but_the_outermost_and_shortcuts_are_integer(encoder: Half) -> None:
    integer = integer_convolutions(encoder.model)
    assert two_byte_convolutions(encoder.model) == integer
    floats = convolutions(encoder.model) - set(integer)
    assert {name for name in floats if not name.endswith("nin_shortcut")} == {"encoder.conv_in", "encoder.conv_out"}
    assert len(integer) == 12  # 2 + 3 blocks of two, and two downsamplings
    stock, fused = stock_and_fused_autoencoder(encoder.model, encoder.observed)
    assert convolutions(stock) == convolutions(fused) == {"encoder.conv_in", "encoder.conv_out"}
    assert Counter(node.op_type for node in fused.graph)["Convolution"] == len(integer)
    onnx.checker.check_model(ir.to_proto(stock), full_check=True)


@pytest.mark.parametrize("reduce_range", [True, pytest.param(False, marks=pytest.mark.exact_products)])
def test_pictures_of_every_size_are_near_those_in_float(decoder: Half, reduce_range: bool, ops_library: Path) -> None:
    """Random weights amplify rounding; a wrong layer gives less than 15 dB."""
    stock, fused = stock_and_fused_autoencoder(decoder.model, decoder.observed, reduce_range)
    for f_hat in decoder.inputs:
        (wanted,) = run(decoder.model, f_hat)
        for model, library in ((stock, None), (fused, ops_library)):
            (found,) = run(model, f_hat, library=library)
            assert found.shape == wanted.shape
            assert psnr(found, wanted) > 30
            np.testing.assert_array_equal(run(model, f_hat[1:2], library=library)[0][0], found[1])


def test_features_of_every_size_are_near_those_in_float(encoder: Half, ops_library: Path) -> None:
    stock, fused = stock_and_fused_autoencoder(encoder.model, encoder.observed)
    for images in encoder.inputs:
        (wanted,) = run(encoder.model, images)
        for model, library in ((stock, None), (fused, ops_library)):
            (found,) = run(model, images, library=library)
            assert found.shape == wanted.shape
            # What rounding weights to 8 bits leaves, amplified by random weights; a wrong layer gives about 1.
            assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 0.02


def with_sides(model: ir.Model, *sides: int | None) -> ir.Model:
    """The same graph, its input of these sides."""
    model = model.clone()
    (source,) = model.graph.inputs
    assert source.shape is not None
    source.shape = ir.Shape([*list(source.shape)[:2], *sides])
    return model


@pytest.mark.parametrize("half", ["decoder", "encoder"])
def test_every_integer_layer_has_an_integer_kernel(half: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found: Half = request.getfixturevalue(half)
    ir.save(quantize_autoencoder(found.model, found.observed), tmp_path / "half.onnx")
    certify(tmp_path / "half.onnx").require_integer(integer_convolutions(found.model))


@pytest.mark.parametrize("size", LATENT_SIZES, ids=str)
def test_a_fused_graph_of_one_size_gives_the_same_bytes(
    decoder: Half, size: tuple[int, int], ops_library: Path
) -> None:
    f_hat = decoder.inputs[LATENT_SIZES.index(size)]
    of_any_size, of_one_size = (
        run(stock_and_fused_autoencoder(model, decoder.observed)[1], f_hat, library=ops_library)[0]
        for model in (decoder.model, with_sides(decoder.model, *size))
    )
    np.testing.assert_array_equal(of_any_size, of_one_size)


@pytest.mark.parametrize("size", LATENT_SIZES, ids=str)
def test_a_graph_of_one_size_gives_the_same_pictures(decoder: Half, size: tuple[int, int]) -> None:
    """Its strips are others: sums are rounded in another order, which moves codes on ties, far fewer than rounding."""
    f_hat = decoder.inputs[LATENT_SIZES.index(size)]
    wanted, of_any_size, of_one_size = (
        run(model, f_hat)[0].astype(float)
        for model in (
            decoder.model,
            quantize_autoencoder(decoder.model, decoder.observed),
            quantize_autoencoder(with_sides(decoder.model, *size), decoder.observed),
        )
    )
    assert np.square(of_any_size - of_one_size).mean() < 0.2 * np.square(of_any_size - wanted).mean()


def test_sides_without_a_name_are_refused(decoder: Half) -> None:
    with pytest.raises(ValueError, match=r"expected f_hat of sides with names or numbers, and channels, found .*None"):
        quantize_autoencoder(with_sides(decoder.model, None, 4), decoder.observed)


def test_the_source_stays_and_the_contract_too(decoder: Half, encoder: Half) -> None:
    for half in (decoder, encoder):
        before = ir.to_proto(half.model).SerializeToString(deterministic=True)
        for model in stock_and_fused_autoencoder(half.model, half.observed):
            source, result = ir.to_proto(half.model).graph, ir.to_proto(model).graph
            assert (list(source.input), list(source.output)) == (list(result.input), list(result.output))
        assert ir.to_proto(half.model).SerializeToString(deterministic=True) == before
