"""Train the emoji model's VAE: `python -m nextscale.demo.emoji.train_tokenizer --data sprites.npz --out RUN`.

`vae.safetensors` in the output folder always has the averaged weights of the last validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from nextscale.demo.emoji.bit_stages import BitStages, bit_entropy
from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.configuration import EMOJI, TINY, EmojiConfig
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.loop import RunOptions, autocast, channels_last, run_options, train
from nextscale.demo.emoji.scenes import Batch, Scenes, batch_of
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.weights import VAE, save_module, saved_step
from nextscale.demo.train_tokenizer import psnr_of, reconstruction_loss
from nextscale.demo.training import full_precision, set_up
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae

BATCH = 50  # of validation
EDGE_WEIGHT = 0.5  # outlines are sharper than photographs'


def varied(batch: Batch, noise: torch.Generator) -> Batch:
    """Any colour behind half of the pictures, and any sprite mirrored: what the VAE sees need not fit the caption."""
    count, device = len(batch.sprites), batch.backgrounds.device
    chance = torch.rand(count, 6, generator=noise, device=device)
    backgrounds = torch.where(chance[:, :1] < 0.5, chance[:, 1:4], batch.backgrounds)
    places = batch.places.clone()
    places[..., 3] *= torch.where(chance[:, 4:] < 0.5, -1, 1)
    return replace(batch, backgrounds=backgrounds, places=places)


def validation_batches(scenes: Scenes, indices: list[int], count: int) -> list[Batch]:
    """So many sprites, evenly spread over some, alone on white with captions that say all."""
    chosen = indices[:: max(1, len(indices) // count)][:count]
    plain = [scenes.plain(i) for i in chosen]
    return [batch_of(plain[i : i + BATCH], scenes.sprites) for i in range(0, len(plain), BATCH)]


class TokenizerTask:
    """The BSQ VAE."""

    name = "tokenizer"

    def __init__(self, config: EmojiConfig, scenes: Scenes, options: RunOptions, device: torch.device) -> None:
        self.device, self.size = device, config.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.model = channels_last(BSQVAE(config.models.vae), device)
        self.stages = BitStages(self.size).to(device)
        self.optimizers = [
            torch.optim.AdamW(self.model.parameters(), options.lr, (0.9, 0.95), weight_decay=0, fused=self.on_gpu)
        ]
        self.draw = Compositor(scenes.sprites, device)
        self.validation = {
            kind: validation_batches(scenes, indices, options.validated)
            for kind, indices in (("held", scenes.held), ("seen", scenes.train))
        }
        self.encode: Any = self.model.encoder
        self.decode: Any = self._decode
        if options.compiled:
            self.encode, self.decode = (torch.compile(f, dynamic=False) for f in (self.encode, self.decode))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _decode(self, f_hat: Tensor, images: Tensor) -> Tensor:
        return reconstruction_loss(self.model.decoder(f_hat).float(), images, EDGE_WEIGHT)

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reconstruction through bits, with gradients straight through their signs; commitment; entropy of bits."""
        images = self.draw(varied(batch, noise)).contiguous(memory_format=torch.channels_last)
        with autocast(self.device):
            features = self.encode(images)
        features = features.float()
        quantized = self.stages(features)
        commitment = (features - quantized.f_hat).square().mean() * features.shape[1]
        by_stage = quantized.residuals.split(self.size.stage_tokens, dim=1)
        entropy = torch.stack([bit_entropy(residuals) for residuals in by_stage]).mean()
        straight = features + (quantized.f_hat - features).detach()
        with autocast(self.device):
            reconstruction = self.decode(straight, images)
        total = reconstruction + 0.1 * commitment + 0.02 * entropy
        return total, {"reconstruction": reconstruction, "commitment": commitment, "entropy": entropy}

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """PSNR in dB of sprites on white, the mean of the pictures'."""
        found: dict[str, float | list[float]] = {}
        for kind, batches in self.validation.items():
            values = [psnr(self.model, self.draw(batch.to(self.device)), self.stages) for batch in batches]
            found[f"psnr_{kind}"] = torch.cat(values).mean().item()
        return found

    def save(self, folder: Path, step: int) -> None:
        save_module(self.model, folder / VAE, step)


def psnr(vae: BSQVAE, images: Tensor, stages: BitStages) -> Tensor:
    """Of each picture in [-1, 1] after encoding and decoding in float32, in whole steps of 1/255: [B], dB."""
    with full_precision():
        output = vae.decode(stages(vae.features(images)).f_hat)
    return psnr_of(output, (images + 1) * 127.5)


@click.command(context_settings={"show_default": True})
@run_options(steps=6000, batch=256, lr=8e-4, validate_every=1000)
def main(**given: Any) -> None:
    options = RunOptions(**given)
    workers = set_up(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    config = TINY if options.tiny else EMOJI
    scenes = Scenes(Sprites.load(options.data), HeldOut.load())
    task, begin = TokenizerTask(config, scenes, options, workers.device), 0
    if options.init:
        task.model.load_state_dict(load_bsq_vae(options.init / VAE, config=config.models.vae).state_dict())
        begin = saved_step(options.init / VAE)
    train(task, scenes, options, workers, warmup=200, decay_from=0.3, begin=begin)
    workers.close()


if __name__ == "__main__":
    main()
