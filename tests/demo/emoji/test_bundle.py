"""What the programs write, built into a bundle: its pictures are those that `evaluate` draws by the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import ONE_THREAD

from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.evaluate import draw, draw_with
from nextscale.demo.emoji.prompts import Prompt, Settings
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.demo.emoji.weights import INFINITY, TEXT, VAE, save_infinity, save_module, save_text
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.infinity.pair import load_pair
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.models.infinity.sources import InfinitySource
from nextscale.models.t5.text_source import load_text_source

PROMPTS = [
    Prompt("seen", text, "flat", "white", (("cat", "whole"),)) for text in ("flat cat on a white background", "dog")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights."""
    folder, model = tmp_path_factory.mktemp("run"), TextToBits(TINY, seed=0)
    torch.nn.init.normal_(model.infinity.head.weight, generator=torch.Generator().manual_seed(0))
    save_infinity(model.infinity, folder / INFINITY, step=0)
    save_text(model.text, folder / TEXT, step=0)
    save_module(random_bsq_vae(TINY.models.vae), folder / VAE, step=0)
    return folder


def test_a_bundle_draws_what_the_weights_draw(run: Path, tmp_path: Path) -> None:
    """The same bits, but for log-odds that are nearer to a random number than float32 tells: none here."""
    infinity, vae = load_pair(run / INFINITY, run / VAE)
    text = load_text_source(run / TEXT, infinity.config.text_channels, infinity.config.max_text)
    source = InfinitySource(infinity, vae, (TINY.size,), "emoji", "For tests.", "MIT", text)
    options = BuildOptions(load_recipe("fp32"), session=ONE_THREAD)
    build_bundle(source, tmp_path / "bundle", options, lambda message: None)
    found = draw_with(tmp_path / "bundle", PROMPTS, Settings())
    expected = draw(run, TINY, PROMPTS, Settings(), torch.device("cpu"))
    # Pixels before rounding differ in the last bits of float32.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 10
