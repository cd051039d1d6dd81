"""Train the judge of what the emoji model draws: `python -m nextscale.demo.emoji.train_judge --data DATA --out RUN`.

It learns from composed scenes in changed colours, sharpness and position, never from a held-out (concept, style) pair:
of those it says how many it recognises. With `--more` some of the things are in styles that the model never shows.
`judge.safetensors` has the averaged weights of the last validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.disturbances import disturbed, first_window, redrawn, turned
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.judge import WINDOWS, Judge, cut, frames, load_judge, sampled
from nextscale.demo.emoji.loop import RunOptions, autocast, channels_last, run_options, train
from nextscale.demo.emoji.scenes import Batch, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.train_tokenizer import validation_batches
from nextscale.demo.emoji.weights import JUDGE, save_module, saved_step
from nextscale.demo.training import set_up
from nextscale.runtime._errors import NextscaleError

SMOOTHING = 0.1  # of labels
STYLE_WEIGHT = 0.2  # of the style's loss beside that of the looks
MORE = 0.3  # of things that are in further styles
UNASKED = -1  # the style of such a thing


def with_more(sprites: Sprites, more: Sprites) -> Sprites:
    """Sprites, and behind them others of the same concepts, whose styles get numbers of their own.

    Raises:
        NextscaleError: the concepts are others.
    """
    if sprites.emoji != more.emoji:
        raise NextscaleError("--more has other concepts than --data; make both with one call of demo.emoji.make_data")
    return replace(
        sprites,
        webp=sprites.webp + more.webp,
        style=np.concatenate((sprites.style, len(WORDS) + more.style)),
        concept=np.concatenate((sprites.concept, more.concept)),
    )


def mixed(batch: Batch, others: range, noise: torch.Generator) -> Batch:
    """The first things of some pictures replaced by other sprites, of which none is mirrored."""
    count, device = len(batch.sprites), batch.sprites.device
    chosen = torch.rand(count, generator=noise, device=device) < MORE
    other = torch.randint(others.start, others.stop, (count,), generator=noise, device=device)
    sprites, places = batch.sprites.clone(), batch.places.clone()
    sprites[:, 0] = torch.where(chosen, other, sprites[:, 0])
    places[:, 0, 3] = torch.where(chosen, 1.0, places[:, 0, 3])
    return replace(batch, sprites=sprites, places=places)


class JudgeTask:
    """The judge."""

    name = "judge"

    def __init__(
        self, model: Judge, scenes: Scenes, options: RunOptions, device: torch.device, more: Sprites | None
    ) -> None:
        """The task; `more` are sprites in further styles."""
        self.device = device
        self.model = channels_last(model, device)
        self.optimizers = [
            torch.optim.AdamW(self.model.parameters(), options.lr, weight_decay=0.05, fused=device.type == "cuda")
        ]
        sprites = with_more(scenes.sprites, more) if more else scenes.sprites
        self.more = range(len(scenes.sprites.webp), len(sprites.webp))
        self.draw = Compositor(sprites, device)
        self.looks = torch.from_numpy(sprites.looks[sprites.concept]).to(device)  # of each sprite
        self.style = torch.from_numpy(np.where(sprites.style < len(WORDS), sprites.style, UNASKED)).to(device)
        self.kin = torch.from_numpy(sprites.kin_of_looks).to(device)  # of each look
        self.validation = {
            kind: validation_batches(scenes, indices, options.validated)
            for kind, indices in (("held", scenes.held), ("seen", scenes.train))
        }
        self.forward: Any = torch.compile(self.model, dynamic=False) if options.compiled else self.model

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy of looks, and of styles."""
        if self.more:
            batch = mixed(batch, self.more, noise)
        places = turned(frames(first_window(batch, noise)), noise)
        windows = disturbed(sampled(redrawn(self.draw(batch), noise), places), noise)
        with autocast(self.device):
            looks, style = self.forward(windows.contiguous(memory_format=torch.channels_last))
        sprite = batch.sprites[:, 0]
        of_looks = F.cross_entropy(looks.float(), self.looks[sprite], label_smoothing=SMOOTHING)
        of_style = F.cross_entropy(
            style.float(), self.style[sprite], label_smoothing=SMOOTHING, ignore_index=UNASKED, reduction="sum"
        ) / len(sprite)
        right = (looks.argmax(1) == self.looks[sprite]).float().mean()
        return of_looks + STYLE_WEIGHT * of_style, {"of_looks": of_looks, "of_style": of_style, "right": right}

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """The shares of sprites on white whose looks, looks up to kin, and style it recognises."""
        self.model.eval()
        found: dict[str, float | list[float]] = {}
        for kind, batches in self.validation.items():
            right, count = torch.zeros(3, device=self.device), 0
            for batch in (one.to(self.device) for one in batches):
                whole = batch.places.new_tensor(WINDOWS["whole"]).expand(len(batch.sprites), 3)
                looks, style = (logits.argmax(1) for logits in self.model(cut(self.draw(batch), whole)))
                sprite = batch.sprites[:, 0]
                wanted = self.looks[sprite]
                hits = (looks == wanted, self.kin[looks] == self.kin[wanted], style == self.style[sprite])
                right += torch.stack(hits).sum(1)
                count += len(sprite)
            shares = (right / max(count, 1)).tolist()
            found |= {f"{what}_{kind}": share for what, share in zip(("looks", "kin", "style"), shares, strict=True)}
        self.model.train()
        return found

    def save(self, folder: Path, step: int) -> None:
        save_module(self.model, folder / JUDGE, step)


@click.command(context_settings={"show_default": True})
@run_options(steps=3500, batch=512, lr=6e-4, validate_every=1000)
@click.option("--more", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="make_data's --judge-out.")
def main(more: Path | None, **given: Any) -> None:
    options = RunOptions(**given)
    workers = set_up(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    sprites = Sprites.load(options.data)
    scenes, looks, begin = Scenes(sprites, HeldOut.load()), int(sprites.looks.max()) + 1, 0
    if options.init:
        judge, begin = load_judge(options.init / JUDGE, looks), saved_step(options.init / JUDGE)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            judge = Judge(looks)
    further = Sprites.load(more) if more else None
    task = JudgeTask(judge.train().requires_grad_(True), scenes, options, workers.device, further)
    train(task, scenes, options, workers, warmup=500, decay_from=0.2, begin=begin)
    workers.close()


if __name__ == "__main__":
    main()
