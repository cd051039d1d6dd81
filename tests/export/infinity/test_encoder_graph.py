"""The encoder's graph against the official code's bits and against torch, for several sizes in one graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.infinity.encoder_graph import Sizes, build_encoder_graph
from nextscale.models.infinity.bsq_vae import BSQVAE
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
