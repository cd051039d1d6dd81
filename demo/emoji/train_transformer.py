"""Train the emoji model's text encoder and transformer: `python -m nextscale.demo.emoji.train_transformer`.

Needs `vae.safetensors` in the output folder, and begins with the `text/` that may be there. `infinity.safetensors` and
`text/` always have the averaged weights of the last validation. On several GPUs: `torchrun --standalone
--nproc-per-node 2 -m nextscale.demo.emoji.train_transformer ...`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.emoji.bit_stages import BitStages, Quantized
from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.configuration import EMOJI, TINY, EmojiConfig
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.loop import RunOptions, autocast, channels_last, run_options, train
from nextscale.demo.emoji.muon import Muon
from nextscale.demo.emoji.scenes import Batch, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.text_to_bits import TextToBits
from nextscale.demo.emoji.train_tokenizer import validation_batches
from nextscale.demo.emoji.weights import INFINITY, TEXT, VAE, save_infinity, save_text, saved_step
from nextscale.demo.training import full_precision, set_up
from nextscale.models.infinity.bsq_vae import BSQVAE
from nextscale.models.infinity.checkpoint import load_infinity
from nextscale.models.infinity.schedules import Size
from nextscale.models.infinity.vae_checkpoint import load_bsq_vae
from nextscale.models.t5.checkpoint import load_t5

TEXT_LR = 0.3  # the text encoder's learning rate, in the transformer's


def token_weights(size: Size) -> Tensor:
    """What a token of each stage counts in the loss, [L]: 1 over its stage's side (`reweight_loss_by_scale`)."""
    weights = torch.cat([torch.full((count,), count**-0.5) for count in size.stage_tokens])
    return weights / weights.sum()


def make_optimizers(model: TextToBits, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest, whose steps are of Muon's size."""
    matrices = [p for p in model.infinity.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.infinity.parameters() if id(p) not in chosen]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": list(model.text.parameters()), "lr_factor": TEXT_LR}]
    return [
        Muon(matrices, lr, weight_decay),
        torch.optim.AdamW(groups, lr, (0.9, 0.95), weight_decay=0, fused=matrices[0].is_cuda),
    ]


class TransformerTask:
    """The text encoder and the transformer, together."""

    name = "transformer"

    def __init__(
        self,
        model: TextToBits,
        vae: BSQVAE,
        config: EmojiConfig,
        scenes: Scenes,
        options: RunOptions,
        device: torch.device,
        *,
        caption_dropout: float,
        flips: float,
        weight_decay: float,
    ) -> None:
        """The task.

        Args:
            caption_dropout: share of captions that are replaced by nothing, for guidance.
            flips: the largest share of a picture's bits that later stages see wrong; it is drawn from 0 to that.
        """
        self.device, self.size = device, config.size
        self.caption_dropout, self.flips = caption_dropout, flips
        self.model = model.to(device)
        self.vae = channels_last(vae, device)
        self.stages, self.weights = BitStages(self.size).to(device), token_weights(self.size).to(device)
        self.optimizers = make_optimizers(self.model, options.lr, weight_decay)
        self.draw = Compositor(scenes.sprites, device)
        self.validation = {
            kind: validation_batches(scenes, indices, options.validated)
            for kind, indices in (("held", scenes.held), ("seen", scenes.train))
        }
        self.token_losses: Any = self._token_losses
        self.quantize: Any = self._quantize
        if options.compiled:
            both = (self.token_losses, self.quantize)
            self.token_losses, self.quantize = (torch.compile(f, dynamic=False) for f in both)

    def _quantize(self, batch: Batch, flips: Tensor) -> Quantized:
        """A batch's pictures, drawn and encoded."""
        images = self.draw(batch).contiguous(memory_format=torch.channels_last)
        with autocast(self.device):
            features = self.vae.features(images)
        quantized: Quantized = self.stages(features.float(), flips)
        return quantized

    def _token_losses(self, token_ids: Tensor, dropped: Tensor, quantized: Quantized) -> Tensor:
        """Binary cross-entropy of each token's bits in nats, the mean over bits and pictures: [L]."""
        with autocast(self.device):
            log_odds = self.model(token_ids, dropped, quantized.inputs)
        return F.binary_cross_entropy_with_logits(log_odds.float(), quantized.bits, reduction="none").mean((0, 2))

    def _by_stage(self, losses: Tensor) -> Tensor:
        return torch.stack([part.mean() for part in losses.split(self.size.stage_tokens)])

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Bits from captions and from coarser bits, of which some are wrong."""
        count, bits = len(batch.sprites), self.vae.config.latent_channels
        rate = self.flips * torch.rand(count, 1, 1, generator=noise, device=self.device)
        flips = torch.rand(count, self.size.num_tokens, bits, generator=noise, device=self.device) < rate
        dropped = torch.rand(count, generator=noise, device=self.device) < self.caption_dropout
        with torch.no_grad():
            quantized = self.quantize(batch, flips)
        losses = self.token_losses(batch.token_ids, dropped, quantized)
        return losses @ self.weights, {"of_stages": self._by_stage(losses)}

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """Nats a bit, weighted as in training, of sprites on white with full captions and right bits."""
        found: dict[str, float | list[float]] = {}
        for kind, batches in self.validation.items():
            total, count = torch.zeros_like(self.weights), 0
            for batch in (one.to(self.device) for one in batches):
                with full_precision():
                    quantized = self.stages(self.vae.features(self.draw(batch)))
                kept = torch.zeros(len(batch.sprites), dtype=torch.bool, device=self.device)
                total += len(kept) * self._token_losses(batch.token_ids, kept, quantized)
                count += len(kept)
            losses = total / max(count, 1)
            found[f"nats_{kind}"] = (losses @ self.weights).item()
            found[f"nats_{kind}_of_stages"] = self._by_stage(losses).tolist()
        return found

    def save(self, folder: Path, step: int) -> None:
        save_infinity(self.model.infinity, folder / INFINITY, step)
        save_text(self.model.text, folder / TEXT, step)


@click.command(context_settings={"show_default": True})
@run_options(steps=20_000, batch=384, lr=1.5e-3, validate_every=500)
@click.option("--weight-decay", default=0.03, help="Of the blocks' matrices.")
@click.option("--caption-dropout", default=0.1, help="Share of captions replaced by nothing, for guidance.")
@click.option("--flips", default=0.2, help="The largest share of a picture's bits seen wrong by later stages.")
def main(weight_decay: float, caption_dropout: float, flips: float, **given: Any) -> None:
    options = RunOptions(**given)
    workers = set_up(options.seed)
    config = TINY if options.tiny else EMOJI
    vae = load_bsq_vae(options.out / VAE, config=config.models.vae)
    scenes = Scenes(Sprites.load(options.data), HeldOut.load())
    model, begin, texts = TextToBits(config, options.seed), 0, options.init or options.out
    if (texts / TEXT).exists():
        model.text.load_state_dict(load_t5(texts / TEXT).state_dict())
    if options.init:
        model.infinity.load_state_dict(load_infinity(options.init / INFINITY).state_dict())
        begin = saved_step(options.init / INFINITY)
    task = TransformerTask(
        model,
        vae,
        config,
        scenes,
        options,
        workers.device,
        caption_dropout=caption_dropout,
        flips=flips,
        weight_decay=weight_decay,
    )
    train(task, scenes, options, workers, warmup=300, decay_from=0.35, begin=begin)
    workers.close()


if __name__ == "__main__":
    main()
