from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.demo.emoji.configuration import EMOJI, TINY, EmojiConfig
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.demo.emoji.weights import (
    INFINITY,
    TEXT,
    TEXT_WEIGHTS,
    VAE,
    save_infinity,
    save_module,
    save_text,
    saved_step,
)
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.checkpoint import load_infinity
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae
from nextscale.models.t5.checkpoint import load_t5

BUDGET = 40_000_000  # bytes of a demo at fp16


def write(config: EmojiConfig, folder: Path) -> tuple[TextToBits, BSQVAE]:
    model, vae = TextToBits(config, seed=0), BSQVAE(config.models.vae)
    save_infinity(model.infinity, folder / INFINITY, step=7)
    save_text(model.text, folder / TEXT, step=7)
    save_module(vae, folder / VAE, step=7)
    return model, vae


@pytest.mark.parametrize("config", [TINY, EMOJI], ids=["tiny", "emoji"])
def test_the_toolchain_reads_what_is_written(config: EmojiConfig, tmp_path: Path) -> None:
    """Without being told the shapes, and rounded to fp16."""
    model, vae = write(config, tmp_path)
    bits = config.models.config.token_bits
    loaded = load_infinity(tmp_path / INFINITY), load_bsq_vae(tmp_path / VAE, token_bits=bits), load_t5(tmp_path / TEXT)
    assert (loaded[0].config, loaded[1].config, loaded[2].config) == (
        config.models.config,
        config.models.vae,
        config.text,
    )
    for found, written in zip(loaded, (model.infinity, vae, model.text), strict=True):
        expected = dict(written.named_parameters())
        assert found.state_dict().keys() == expected.keys()
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor.float(), expected[name].half().float()), name
    assert [saved_step(tmp_path / name) for name in (INFINITY, VAE, f"{TEXT}/{TEXT_WEIGHTS}")] == [7, 7, 7]


def test_the_model_fits_a_demo(tmp_path: Path) -> None:
    write(EMOJI, tmp_path)
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 0.98 * BUDGET < total <= BUDGET  # the budget is used, too
