from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import RECIPES, no_progress, tiny_options, tiny_source

from nextscale.compiler.build import build_bundle
from nextscale.compiler.learn import learn_bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.reconstruction_settings import ReconstructionSettings


@pytest.mark.parametrize("precision", RECIPES)
def test_logits_that_overflow_are_refused(tmp_path: Path, precision: str) -> None:
    """All weights are finite in float32, but what the head computes is not."""
    source = tiny_source()
    source.var.head.weight.data.fill_(3e38)
    with pytest.raises(
        NextscaleError, match=r"tiny in fp32: logits are NaN or infinite in stage 0: what the transformer"
    ):
        build_bundle(source, tmp_path / "bundle", tiny_options(RECIPES[precision]), no_progress)
    assert not list(tmp_path.iterdir())


def test_logits_that_overflow_at_the_strongest_guidance_are_refused(tmp_path: Path) -> None:
    source = tiny_source()
    source.var.head.weight.data *= 1e36
    with pytest.raises(NextscaleError, match="logits are NaN or infinite"):
        build_bundle(source, tmp_path / "bundle", tiny_options("fp32"), no_progress)


def test_pictures_that_overflow_are_refused(tmp_path: Path) -> None:
    source = tiny_source()
    torch.nn.init.constant_(source.vqvae.decoder.conv_in.weight, 3e38)
    with pytest.raises(NextscaleError, match="pictures are NaN: what the decoder computes overflows float32"):
        build_bundle(source, tmp_path / "bundle", tiny_options("fp32"), no_progress)
    assert not list(tmp_path.iterdir())


def test_nothing_is_learned_from_logits_that_overflow(tmp_path: Path) -> None:
    source = tiny_source()
    source.var.head.weight.data.fill_(3e38)
    with pytest.raises(NextscaleError, match="logits are NaN or infinite"):
        learn_bundle(
            source,
            tmp_path / "bundle",
            tiny_options("brecq-w4a6"),
            ReconstructionSettings(iterations=1),
            "cpu",
            no_progress,
        )
    assert not (tmp_path / "bundle.learning" / "token_maps").exists()
