"""A very small emoji model of random weights, as the training programs leave one."""

from __future__ import annotations

from pathlib import Path

import torch

from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.demo.emoji.weights import INFINITY, TEXT, VAE, save_infinity, save_module, save_text
from nextscale.models.infinity.random_vae import random_bsq_vae


def write_tiny_emoji(folder: Path) -> None:
    """Its three parts, into a folder."""
    model = TextToBits(TINY, seed=0)
    torch.nn.init.normal_(model.infinity.head.weight, generator=torch.Generator().manual_seed(0))
    save_infinity(model.infinity, folder / INFINITY, step=0)
    save_text(model.text, folder / TEXT, step=0)
    save_module(random_bsq_vae(TINY.models.vae), folder / VAE, step=0)
