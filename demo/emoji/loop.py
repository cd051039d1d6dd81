"""The loop that all four training programs run: by steps, so that a run that was cut goes on as if it had not been.

Pictures, captions and noise are functions of seed and step, and a checkpoint has all else that a step depends on. A
machine may be given back between two calls, with its disk: then `--init` goes on from the averaged weights alone, at
their step, with new optimizers and another warm-up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nextscale.demo.emoji.scenes import Batch, SceneBatches, Scenes
from nextscale.demo.training import (
    AveragedWeights,
    JsonLines,
    Workers,
    learning_rate_factor,
    load_checkpoint,
    log,
    save_checkpoint,
)

LOG_EVERY = 50
Command = TypeVar("Command", bound=Callable[..., Any])
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class RunOptions:
    """What every training program is told.

    Attributes:
        data: of `make_data`.
        out: where checkpoint, log and weights go, and where the parts that were trained before are.
        steps: of the whole run, to which the learning rate falls.
        batch: pictures a step and GPU.
        lr: its peak.
        validate_every: steps between two validations, which also save.
        minutes: after which this call ends, compiling included, saved, wherever it is.
        init: a folder with the weights to go on from where `out` has no checkpoint.
        loaders: processes that draw scenes; 0: the program itself does.
    """

    data: Path
    out: Path
    steps: int
    batch: int
    lr: float
    validate_every: int
    minutes: float
    init: Path | None
    seed: int
    loaders: int
    compiled: bool
    tiny: bool

    @property
    def validated(self) -> int:
        """Held-out sprites, and others, by which weights are judged."""
        return 2 if self.tiny else 300


def run_options(**defaults: Any) -> Callable[[Command], Command]:
    """The options of `RunOptions` for a command, with the defaults of a program."""
    folder = click.Path(file_okay=False, path_type=Path)
    options = [
        click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True),
        click.option("--out", type=folder, required=True),
        click.option("--steps", default=defaults["steps"], help="Of the whole run, over all its parts."),
        click.option("--batch", default=defaults["batch"], help="Pictures a step and GPU."),
        click.option("--lr", default=defaults["lr"]),
        click.option("--validate-every", default=defaults["validate_every"], help="Steps."),
        click.option("--minutes", default=float("inf"), help="End this call after so many; the same call goes on."),
        click.option("--init", type=folder, help="Go on from the weights in this folder."),
        click.option("--seed", default=0),
        click.option("--loaders", default=8, help="Processes that draw scenes."),
        click.option("--compile/--no-compile", "compiled", default=True),
        click.option("--tiny", is_flag=True, help="A very small model (to try the program)."),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Task(Protocol):
    """What is trained."""

    @property
    def name(self) -> str:
        """Of its log and checkpoint."""

    @property
    def model(self) -> nn.Module:
        """Whose parameters are trained and averaged."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """A group's `lr_factor`, 1 by default, scales the learning rate."""

    def loss(self, batch: Batch, noise: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What to minimise, and figures for the log."""

    def validate(self) -> Mapping[str, float | list[float]]:
        """Figures of the weights that the model has; called with the averaged ones."""

    def save(self, folder: Path, step: int) -> None:
        """Write the weights that the model has; called with the averaged ones."""


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 products on a GPU, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def train(
    task: Task, scenes: Scenes, options: RunOptions, workers: Workers, *, warmup: int, decay_from: float, begin: int = 0
) -> None:
    """Run a task to its last step, or until the call's minutes are over.

    Args:
        warmup: steps, of the run and of each part of it that goes on without a checkpoint.
        decay_from: share of the run after which the learning rate falls, as half a cosine, to 0.
        begin: step of the weights that the task's model was given.
    """
    started, device, step = time.monotonic(), workers.device, begin
    average = AveragedWeights(task.model, 0.999)
    checkpoint, lines = options.out / f"{task.name}.ckpt", JsonLines(options.out / f"{task.name}.jsonl")
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, device)
        task.model.load_state_dict(state["model"])
        for optimizer, kept in zip(task.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average.load_state_dict(state["average"])
        step, begin = state["step"], state["begin"]
        log.info("resumed at step %d", step)

    saved = step

    def save() -> None:
        nonlocal saved
        saved = step
        with average.in_place():
            lines.write(step=step, **task.validate())
            task.save(options.out, step)
        state = {
            "model": task.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in task.optimizers],
            "average": average.state_dict(),
            "step": step,
            "begin": begin,
        }
        save_checkpoint(checkpoint, state)

    data = SceneBatches(scenes, options.seed, options.batch, workers.rank, workers.count)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(step, options.steps),
        num_workers=options.loaders,
        pin_memory=device.type == "cuda",
    )
    noise, sums, logged = torch.Generator(device), Sums(), started
    for since, batch in enumerate(loader):
        if since % 10 == 0 and workers.agree(time.monotonic() - started) > 60 * options.minutes:
            break
        number = (options.seed << 48) + step * workers.count + workers.rank
        noise.manual_seed(number)
        torch.manual_seed(number)  # of what modules draw themselves, as dropout does
        factor = learning_rate_factor(step / options.steps, step - begin, warmup_steps=warmup, decay_from=decay_from)
        for group in (group for optimizer in task.optimizers for group in optimizer.param_groups):
            group["lr"] = options.lr * factor * group.get("lr_factor", 1.0)
        loss, figures = task.loss(batch.to(device), noise)
        loss.backward()
        workers.average_gradients(task.model)
        norm = nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        for optimizer in task.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update()
        sums.add({"loss": loss, "grad_norm": norm} | dict(figures))
        step += 1
        if workers.first and step % LOG_EVERY == 0:
            means, now = sums.means(), time.monotonic()  # the means wait for the GPU
            rate = LOG_EVERY * options.batch * workers.count / (now - logged)
            lines.write(step=step, seconds=now - started, pictures_per_s=rate, lr=options.lr * factor, **means)
            logged = now
        if workers.first and step % options.validate_every == 0:
            save()
    if workers.first and step != saved:
        save()


def channels_last(model: Model, device: torch.device) -> Model:
    """A model on its device, its convolutions' weights laid out as GPUs like them."""
    for parameter in model.to(device).parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


class Sums:
    """Figures summed on their device, so that no step waits for the GPU."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        self.count += 1

    def means(self) -> dict[str, float | list[float]]:
        """Of what was added since the last call."""
        found: dict[str, float | list[float]] = {
            name: (value / self.count).tolist() for name, value in self.sums.items()
        }
        self.sums, self.count = {}, 0
        return found
