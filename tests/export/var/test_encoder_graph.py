"""The encoder's graph against the official code's token maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nextscale.export.var.encoder_graph import build_features_graph, with_token_maps
from nextscale.models.var.vqvae import VQVAE
from nextscale.runtime._session import SessionOptions, new_session, session_settings
from tests.goldens.parity import CASES, ENCODER, GOLDENS, Case, models_of, random_pictures


def encode(vqvae: VQVAE, images: np.ndarray, folder: Path) -> np.ndarray:
    """The token maps that the graph makes of uint8 [B, H, W, 3]."""
    path = folder / "encoder.onnx"
    ir.save(with_token_maps(build_features_graph(vqvae), vqvae.quantize), path)
    onnx.checker.check_model(str(path), full_check=True)
    session = new_session(path, session_settings(SessionOptions(threads=1)))
    token_maps: np.ndarray = session.run(["token_maps"], {"images": images})[0]
    return token_maps


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_token_maps_are_the_official_ones(case: Case, tmp_path: Path) -> None:
    _, vqvae = models_of(case)
    with np.load(GOLDENS / f"{ENCODER}.npz") as goldens:
        golden = goldens[case.name]
    found = encode(vqvae, random_pictures(vqvae.config), tmp_path)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, golden)
    assert len(np.unique(golden)) >= 16


def test_pictures_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    _, vqvae = models_of(CASES[0])
    images = random_pictures(vqvae.config)
    alone = encode(vqvae, images[1:], tmp_path)
    np.testing.assert_array_equal(encode(vqvae, images, tmp_path)[1:], alone)
