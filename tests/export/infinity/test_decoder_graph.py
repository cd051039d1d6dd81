"""The decoder's graph against torch, for latents of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.export.infinity.decoder_graph import build_decoder_graph
from nextscale.runtime._session import SessionOptions, new_session, session_settings
from tests.goldens.infinity_vae_parity import INFINITY_VAE, VAE_CASES, VAECase, vae_of

# In units of the picture's codes, 127.5 a number: what float32 rounding moves a number by (tests/models/infinity).
ROUNDING = 127.5 * 2e-5


def open_decoder(case: VAECase, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / "decoder.onnx"
    ir.save(build_decoder_graph(vae_of(case)), path)
    onnx.checker.check_model(str(path), full_check=True)
    return new_session(path, session_settings(SessionOptions(threads=1)))


def assert_near(found: NDArray[np.uint8], numbers: NDArray[np.float32]) -> None:
    """Pictures uint8 [B, H, W, 3] that are round(127.5 (x + 1)) of numbers [B, 3, H, W], but for rounding of x."""
    exact = 127.5 * (np.clip(numbers, -1, 1).astype(np.float64).transpose(0, 2, 3, 1) + 1)
    assert found.shape == exact.shape
    scale = max(1.0, float(np.abs(numbers).max()))
    assert np.abs(found - exact).max() <= 0.5 + ROUNDING * scale


@pytest.mark.parametrize("case", VAE_CASES, ids=lambda case: case.name)
def test_the_picture_is_the_official_one(case: VAECase, tmp_path: Path) -> None:
    with np.load(INFINITY_VAE) as goldens:
        z, picture = (goldens[f"{case.name}.{what}"][None] for what in ("z", "picture"))
    assert_near(open_decoder(case, tmp_path).run(["images"], {"f_hat": z})[0], picture)


def test_one_graph_decodes_latents_of_any_size(tmp_path: Path) -> None:
    case = VAE_CASES[3]
    session, vae = open_decoder(case, tmp_path), vae_of(case)
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in ((1, 1, 1), (2, 4, 3), (1, 3, 7)):
        f_hat = torch.randn(batch, case.config.latent_channels, height, width, generator=generator)
        found = session.run(["images"], {"f_hat": f_hat.numpy()})[0]
        assert found.shape == (batch, 4 * height, 4 * width, 3)
        assert_near(found, vae.decoder(f_hat).numpy())


def test_the_contract(tmp_path: Path) -> None:
    session = open_decoder(VAE_CASES[4], tmp_path)
    (f_hat,), (images,) = session.get_inputs(), session.get_outputs()
    assert (f_hat.name, f_hat.type, f_hat.shape) == ("f_hat", "tensor(float)", ["B", 4, "h", "w"])
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["B", "H", "W", 3])
