"""Sheets of pictures and curves for the model card: `python -m nextscale.demo.sheets --help`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

from nextscale.demo.photographs import SIDE, Photographs, to_float
from nextscale.demo.weights import PUBLISHED
from nextscale.models.var.checkpoint import load_models, load_vqvae
from nextscale.models.var.reference import generate, to_pixels
from nextscale.models.var.vqvae import PATCH_NUMS_256
from nextscale.runtime._uniforms import uniforms

GAP, CAPTION = 2, 12


def sheet(pixels: np.ndarray, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures uint8 [B, H, W, 3] in rows of `columns`; a caption above each row."""
    step, above = SIDE + GAP, CAPTION if captions else 0
    rows = -(-len(pixels) // columns)
    canvas = Image.new("RGB", (columns * step - GAP, rows * (step + above) - GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        top = row * (step + above) + above
        canvas.paste(Image.fromarray(picture), (column * step, top))
        if captions and column == 0:
            draw.text((1, top - CAPTION), captions[row], fill="black")
    return canvas


@click.group()
def main() -> None:
    """Pictures for the model card."""


@main.command()
@click.option("--weights", type=click.Path(path_type=Path), default=PUBLISHED, show_default=True)
@click.option("--classes", help="Comma-separated ids or names; default: every class.")
@click.option("--count", default=8, show_default=True, help="Pictures per class.")
@click.option("--cfg-scale", default=3.0, show_default=True)
@click.option("--top-k", default=900, show_default=True)
@click.option("--top-p", default=0.95, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def samples(
    weights: Path, classes: str | None, count: int, cfg_scale: float, top_k: int, top_p: float, seed: int, out: Path
) -> None:
    """A row of samples for each class."""
    var, vqvae = load_models(weights / "var.safetensors", weights / "vae.safetensors")
    names: list[str] = json.loads((weights / "class_names.json").read_text())
    wanted = [c.strip() for c in classes.split(",")] if classes else [str(i) for i in range(len(names))]
    ids = [int(c) if c.isdigit() else names.index(c) for c in wanted]
    pixels = []
    for row, label in enumerate(ids):
        labels = torch.full((count,), label)
        numbers = uniforms(seed, range(row * count, (row + 1) * count), var.config.num_tokens)
        made = generate(var, vqvae, labels, torch.from_numpy(numbers), cfg_scale=cfg_scale, top_k=top_k, top_p=top_p)
        pixels.append(made.images.numpy())
    sheet(np.concatenate(pixels), count, [f"{i} {names[i]}" for i in ids]).save(out, optimize=True)


@main.command()
@click.option("--weights", type=click.Path(path_type=Path), default=PUBLISHED, show_default=True)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--count", default=64, show_default=True)
@click.option("--originals", is_flag=True, help="Each photograph before its reconstruction.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def reconstructions(weights: Path, data: Path, count: int, originals: bool, out: Path) -> None:
    """Validation photographs after encoding, quantizing and decoding: near copies, so not for publication."""
    vqvae = load_vqvae(weights / "vae.safetensors", patch_nums=PATCH_NUMS_256)
    photographs = Photographs.load(data)
    chosen = to_float(photographs.val[:: max(1, len(photographs.val) // count)][:count])
    images = vqvae.decode_tokens(vqvae.encode(chosen))
    if originals:
        images = torch.stack((chosen, images), dim=1).flatten(0, 1)
    sheet(to_pixels(images).numpy(), 16).save(out, optimize=True)


@main.command()
@click.option("--logs", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of the logs.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def curves(logs: Path, out: Path) -> None:
    """The tokenizer's PSNR and the transformer's losses over training time.

    `transformer_continued.jsonl`, if there, is a run that began with the weights of `transformer.jsonl`'s last
    validation: it goes on from there.
    """
    from matplotlib.figure import Figure

    transformer, begins = _records(logs / "transformer.jsonl"), []
    if (continued := logs / "transformer_continued.jsonl").exists():
        begins = [r["seconds"] for r in transformer if "val_loss" in r][-1:]
        transformer = [r for r in transformer if r["seconds"] <= begins[0]]
        transformer += [r | {"seconds": begins[0] + r["seconds"]} for r in _records(continued)]

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*_points(_records(logs / "tokenizer.jsonl"), "val_psnr"), marker=".", color="tab:blue")
    left.set(title="tokenizer", xlabel="minutes", ylabel="validation PSNR, dB")
    right.plot(*_points(transformer, "train_loss"), label="training", color="tab:gray")
    right.plot(*_points(transformer, "val_loss"), label="validation, averaged weights", color="tab:orange")
    for begin in begins:
        right.axvline(begin / 60, label="continued", color="black", linewidth=0.8, linestyle=":")
    right.set(title="transformer", xlabel="minutes", ylabel="nats per token")
    right.set_ylim(top=min(6.5, right.get_ylim()[1]))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=90)


def _records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def _points(records: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Minutes and values of the records that have the key."""
    kept = [r for r in records if key in r and "seconds" in r]
    return [r["seconds"] / 60 for r in kept], [r[key] for r in kept]


if __name__ == "__main__":
    main()
