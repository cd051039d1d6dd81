"""The encoder's graph against the official code's bits and against torch, for several sizes in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nextscale.export.infinity.encoder_graph import Sizes, build_encoder_graph
from nextscale.models.infinity.bsq_vae import BSQVAE, BSQVAEConfig
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.models.infinity.schedules import SCALES, make_size
from nextscale.runtime._session import SessionOptions, new_session, session_settings
from tests.goldens.infinity_vae_parity import (
    INFINITY_VAE,
    SQUARE,
    TALL,
    VAE_CASES,
    VAECase,
    as_numbers,
    vae_of,
    vae_pictures,
)


def open_encoder(vae: BSQVAE, sizes: Sizes, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / "encoder.onnx"
    ir.save(build_encoder_graph(vae, sizes), path)
    onnx.checker.check_model(str(path), full_check=True)
    return new_session(path, session_settings(SessionOptions(threads=1)))


def encode(session: onnxruntime.InferenceSession, images: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    token_maps: NDArray[np.int64] = session.run(["token_maps"], {"images": images, "size": np.array(size)})[0]
    return token_maps


@pytest.mark.parametrize("case", VAE_CASES, ids=lambda case: case.name)
def test_bits_are_the_official_ones(case: VAECase, tmp_path: Path) -> None:
    with np.load(INFINITY_VAE) as goldens:
        golden = goldens[f"{case.name}.bits"]
    found = encode(open_encoder(vae_of(case), [case.stage_sizes], tmp_path), vae_pictures(case), 0)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, golden)


def test_one_graph_has_several_sizes(tmp_path: Path) -> None:
    """Of different ratios and lengths, the shorter ones of which end earlier."""
    vae = vae_of(VAE_CASES[1])
    sizes = [SQUARE[:4], SQUARE, TALL, tuple((width, height) for height, width in TALL)]
    session = open_encoder(vae, sizes, tmp_path)
    for index, stages in enumerate(sizes):
        images = vae_pictures(VAECase("sizes", vae.config, stages))
        expected = vae.encode(as_numbers(images), stages)
        found = encode(session, images, index)
        np.testing.assert_array_equal(found, expected.numpy())
        assert found.shape[1] == sum(height * width for height, width in stages)


def residuals(features: torch.Tensor, bits: torch.Tensor, stages: Sequence[tuple[int, int]]) -> torch.Tensor:
    """What each bit is the sign of if those before it are these, in float64: [1, d, h, w], [1, L, d] -> [1, L, d]."""
    residual, size, found, begin = features.double(), features.shape[2:], [], 0
    for height, width in stages:
        found.append(F.adaptive_avg_pool2d(residual, (height, width)).flatten(2).mT)
        signs = 2 * bits[:, begin : begin + height * width].double() - 1
        codes = signs.mT.unflatten(2, (height, width)) / features.shape[1] ** 0.5
        residual = residual - F.interpolate(codes, size=size, mode="bilinear")
        begin += height * width
    return torch.cat(found, dim=1)


def test_bits_of_all_official_schedules_are_signs_of_what_is_left_over(tmp_path: Path) -> None:
    """All ratios, at 13 scales and at 7, of a VAE whose latents are pixels.

    A bit that is none is a tie: the graph's float32 sums, of features and of 13 stages, are exact to some 1e-6 of them.
    """
    vae = random_bsq_vae(BSQVAEConfig(8, 32, (1,), num_res_blocks=1))
    sizes = [make_size(area, ratio).stage_sizes for area in ("1M", "0.06M") for ratio in SCALES]
    session = open_encoder(vae, sizes, tmp_path)
    ties = total = 0
    for index, stages in enumerate(sizes):
        images = vae_pictures(VAECase(f"size {index}", vae.config, stages))[:1]
        bits, features = torch.from_numpy(encode(session, images, index)), vae.features(as_numbers(images))
        signed = residuals(features, bits, stages) * (2 * bits - 1)
        assert signed.min() > -1e-5 * features.abs().max(), stages
        ties, total = ties + int((signed < 0).sum()), total + bits.numel()
    assert ties < 1e-4 * total


def test_pictures_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    case = VAE_CASES[2]
    session, images = open_encoder(vae_of(case), [case.stage_sizes], tmp_path), vae_pictures(case)
    np.testing.assert_array_equal(encode(session, images, 0)[1:], encode(session, images[1:], 0))


def test_the_contract(tmp_path: Path) -> None:
    case = VAE_CASES[4]
    session = open_encoder(vae_of(case), [case.stage_sizes], tmp_path)
    inputs, outputs = (
        [(v.name, v.type, v.shape) for v in values] for values in (session.get_inputs(), session.get_outputs())
    )
    assert inputs == [("images", "tensor(uint8)", ["B", "H", "W", 3]), ("size", "tensor(int64)", [])]
    assert outputs == [("token_maps", "tensor(int64)", ["B", "L", 16])]
