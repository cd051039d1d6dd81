"""PSNR of the demo model's VQVAE on the validation photographs, as `python -m nextscale.demo.evaluate_tokenizer`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from nextscale.demo.photographs import Photographs
from nextscale.demo.train_tokenizer import psnr
from nextscale.demo.weights import PUBLISHED
from nextscale.models.var.checkpoint import load_vqvae
from nextscale.models.var.vqvae import PATCH_NUMS_256


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--weights", type=click.Path(exists=True, path_type=Path), default=PUBLISHED)
@click.option("--limit", type=int, default=None, help="About this many photographs.")
def main(data: Path, weights: Path, limit: int | None) -> None:
    """Print the mean PSNR of the images, and the PSNR of the mean squared error."""
    vqvae = load_vqvae(weights / "vae.safetensors", patch_nums=PATCH_NUMS_256)
    val = Photographs.load(data, limit=limit).val
    values = psnr(vqvae, val, batch=50)
    of_mean = -10 * torch.log10((10 ** (-values / 10)).mean())
    click.echo(json.dumps({"images": len(val), "psnr": float(values.mean()), "psnr_of_mean_mse": float(of_mean)}))


if __name__ == "__main__":
    main()
