"""Teach the emoji model's text encoder words before it sees pictures: it names what captions are about.

`python -m nextscale.demo.emoji.train_text --data sprites.npz --out RUN` takes a minute and makes `text/` in the output
folder, with which `train_transformer` begins. The layers that name are thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.demo.emoji.captions import COLOURS
from nextscale.demo.emoji.configuration import EMOJI, TINY
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.loop import RunOptions, autocast, run_options, train
from nextscale.demo.emoji.scenes import Batch, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.train_tokenizer import validation_batches
from nextscale.demo.emoji.weights import TEXT, TEXT_WEIGHTS, save_text, saved_step
from nextscale.demo.training import set_up
from nextscale.models.t5.checkpoint import load_t5
from nextscale.models.t5.encoder import T5Encoder
from nextscale.models.t5.random_weights import random_t5

PARTS = ("style", "colour", "first", "second")


class Namer(nn.Module):
    """A text encoder, and one learned query for each part of a caption that names the part."""

    def __init__(self, text: T5Encoder, choices: list[int]) -> None:
        super().__init__()
        self.text = text
        width = text.config.embed_dim
        self.query = nn.Parameter(torch.randn(len(choices), width) / width**0.5)
        self.keys_and_values = nn.Linear(width, 2 * width)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in choices)

    def forward(self, token_ids: Tensor) -> list[Tensor]:
        """Ids int64 [B, N], 0 behind a caption's end, to logits of each part, [B, choices]."""
        mask = token_ids > 0
        key, value = self.keys_and_values(self.text(token_ids, mask)).chunk(2, dim=-1)
        query = self.query.to(key.dtype).expand(len(key), -1, -1)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return [head(part) for head, part in zip(self.heads, found.unbind(1), strict=True)]


class TextTask:
    """The text encoder alone."""

    name = "text"

    def __init__(self, text: T5Encoder, scenes: Scenes, options: RunOptions, device: torch.device) -> None:
        self.device = device
        concepts = len(scenes.sprites.emoji)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.model = Namer(text, [len(WORDS) + 1, len(COLOURS) + 1, concepts, concepts + 1]).to(device)
        gpu = device.type == "cuda"
        self.optimizers = [
            torch.optim.AdamW(self.model.parameters(), options.lr, (0.9, 0.95), weight_decay=0.01, fused=gpu)
        ]
        self.validation = validation_batches(scenes, scenes.held, options.validated)
        self.name_parts: Any = torch.compile(self.model, dynamic=False) if options.compiled else self.model

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy, summed over the parts."""
        with autocast(self.device):
            logits = self.name_parts(batch.token_ids)
        pairs = zip(logits, batch.labels.unbind(1), strict=True)
        losses = torch.stack([F.cross_entropy(found.float(), label) for found, label in pairs])
        return losses.sum(), {"of_parts": losses}

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """The share of full captions of held-out pairs of which each part is named."""
        right, count = torch.zeros(len(PARTS)), 0
        for batch in self.validation:
            logits = self.model(batch.token_ids.to(self.device))
            found = torch.stack([part.argmax(1) for part in logits], dim=1).cpu()
            right += (found == batch.labels).float().sum(0)
            count += len(found)
        return {f"right_{part}": share for part, share in zip(PARTS, (right / max(count, 1)).tolist(), strict=True)}

    def save(self, folder: Path, step: int) -> None:
        save_text(self.model.text, folder / TEXT, step)


@click.command(context_settings={"show_default": True})
@run_options(steps=1500, batch=2048, lr=2e-3, validate_every=500)
def main(**given: Any) -> None:
    options = RunOptions(**given)
    workers = set_up(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    scenes, begin = Scenes(Sprites.load(options.data), HeldOut.load()), 0
    if options.init:
        text, begin = load_t5(options.init / TEXT).float(), saved_step(options.init / TEXT / TEXT_WEIGHTS)
    else:
        text = random_t5((TINY if options.tiny else EMOJI).text, options.seed)
    task = TextTask(text.train().requires_grad_(True), scenes, options, workers.device)
    train(task, scenes, options, workers, warmup=200, decay_from=0.4, begin=begin)
    workers.close()


if __name__ == "__main__":
    main()
