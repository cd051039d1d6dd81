"""Train the judge of what the emoji model draws: `python -m nextscale.demo.emoji.train_judge --data DATA --out RUN`.

It learns from composed scenes in changed colours, sharpness and position, never from a held-out (concept, style) pair:
of those it says how many it recognises. `judge.safetensors` has the averaged weights of the last validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.demo.emoji.compose import Compositor
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.judge import SIDE, TINY_JUDGE, WINDOWS, Judge, JudgeConfig, cut, load_judge
from nextscale.demo.emoji.loop import RunOptions, autocast, channels_last, run_options, train
from nextscale.demo.emoji.scenes import Batch, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.train_tokenizer import validation_batches
from nextscale.demo.emoji.weights import JUDGE, save_module, saved_step
from nextscale.demo.training import set_up

SMOOTHING = 0.1  # of labels
STYLE_WEIGHT = 0.2  # of the style's loss beside that of the looks


def first_window(batch: Batch, noise: torch.Generator) -> Tensor:
    """Where each picture's first thing is: the whole picture of one thing, a half of two; somewhat moved, [B, 3]."""
    x, y = batch.places[:, 0, 1:3].unbind(1)
    quarters = torch.stack([_quarter(x), _quarter(y), torch.full_like(x, 0.5)], dim=1)
    whole = quarters.new_tensor(WINDOWS["whole"])
    windows = torch.where(batch.sprites[:, 1:] < 0, whole, quarters)
    moved = torch.rand(windows.shape, generator=noise, device=x.device) * 2 - 1
    return windows + moved * windows[:, 2:] * windows.new_tensor((0.05, 0.05, 0.1))


def _quarter(position: Tensor) -> Tensor:
    """A coordinate of the middle of the half that a position is in: 0.25, 0.5 or 0.75."""
    return 0.5 + 0.25 * ((position > 0.6).float() - (position < 0.4).float())


def disturbed(windows: Tensor, noise: torch.Generator) -> Tensor:
    """Windows [B, 3, 64, 64] in other colours, now and then grey or less sharp, and with noise."""
    count, device = len(windows), windows.device

    def random(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=noise, device=device)

    gain, shift = 0.75 + 0.5 * random(3, 1, 1), 0.4 * random(3, 1, 1) - 0.2
    windows = windows * gain + shift
    windows = torch.where(random(1, 1, 1) < 0.1, windows.mean(1, keepdim=True), windows)
    blurred = F.interpolate(F.avg_pool2d(windows, 2), size=(SIDE, SIDE), mode="bilinear")
    windows = torch.where(random(1, 1, 1) < 0.3, blurred, windows)
    strength = 0.1 * random(1, 1, 1)
    return windows + strength * torch.randn(windows.shape, generator=noise, device=device)


class JudgeTask:
    """The judge."""

    name = "judge"

    def __init__(self, model: Judge, scenes: Scenes, options: RunOptions, device: torch.device) -> None:
        self.device = device
        self.model = channels_last(model, device)
        self.optimizers = [
            torch.optim.AdamW(self.model.parameters(), options.lr, weight_decay=0.05, fused=device.type == "cuda")
        ]
        self.draw = Compositor(scenes.sprites, device)
        sprites = scenes.sprites
        self.looks = torch.from_numpy(sprites.looks[sprites.concept]).to(device)  # of each sprite
        self.style = torch.from_numpy(sprites.style).to(device)
        self.kin = torch.from_numpy(sprites.kin_of_looks).to(device)  # of each look
        self.validation = {
            kind: validation_batches(scenes, indices, options.validated)
            for kind, indices in (("held", scenes.held), ("seen", scenes.train))
        }
        self.forward: Any = torch.compile(self.model, dynamic=False) if options.compiled else self.model

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy of looks, and of styles."""
        windows = disturbed(cut(self.draw(batch), first_window(batch, noise)), noise)
        with autocast(self.device):
            looks, style = self.forward(windows.contiguous(memory_format=torch.channels_last))
        sprite = batch.sprites[:, 0]
        of_looks = F.cross_entropy(looks.float(), self.looks[sprite], label_smoothing=SMOOTHING)
        of_style = F.cross_entropy(style.float(), self.style[sprite], label_smoothing=SMOOTHING)
        right = (looks.argmax(1) == self.looks[sprite]).float().mean()
        return of_looks + STYLE_WEIGHT * of_style, {"of_looks": of_looks, "of_style": of_style, "right": right}

    @torch.no_grad()
    def validate(self) -> dict[str, float | list[float]]:
        """The shares of sprites on white whose looks, looks but for gender (`kin`), and style it recognises."""
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
        return found

    def save(self, folder: Path, step: int) -> None:
        save_module(self.model, folder / JUDGE, step)


@click.command(context_settings={"show_default": True})
@run_options(steps=6000, batch=512, lr=1e-3, validate_every=1000)
def main(**given: Any) -> None:
    options = RunOptions(**given)
    workers = set_up(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    sprites = Sprites.load(options.data)
    scenes, looks, begin = Scenes(sprites, HeldOut.load()), int(sprites.looks.max()) + 1, 0
    config = TINY_JUDGE if options.tiny else JudgeConfig()
    if options.init:
        judge, begin = load_judge(options.init / JUDGE, looks, config), saved_step(options.init / JUDGE)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            judge = Judge(looks, config)
    task = JudgeTask(judge.train().requires_grad_(True), scenes, options, workers.device)
    train(task, scenes, options, workers, warmup=500, decay_from=0.2, begin=begin)
    workers.close()


if __name__ == "__main__":
    main()
