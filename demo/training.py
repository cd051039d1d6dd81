"""What both training programs share: schedule, averaged weights, checkpoints, logs."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger("nextscale.demo")


def learning_rate_factor(progress: float, step: int, *, warmup_steps: int, decay_from: float = 0.0) -> float:
    """Linear warm-up over steps, constant until `decay_from`, then half a cosine to 0; progress in [0, 1] is time."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if progress < decay_from:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - decay_from) / (1 - decay_from))))


class AveragedWeights:
    """An exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.params = list(model.parameters())
        self.average = [p.detach().clone() for p in self.params]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        raw = [p.detach().clone() for p in self.params]
        torch._foreach_copy_([p.detach() for p in self.params], self.average)
        try:
            yield
        finally:
            torch._foreach_copy_([p.detach() for p in self.params], raw)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.average, state["average"])
        self.steps = state["steps"]


class Clock:
    """Training time in seconds, over all resumed parts; starts after the first step, so that compiling is left out."""

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget, self.spent, self.started = budget, spent, 0.0

    def start(self) -> None:
        self.started = self.started or time.monotonic()

    @property
    def elapsed(self) -> float:
        return self.spent + (time.monotonic() - self.started if self.started else 0.0)

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / self.budget)


class JsonLines:
    """One JSON object per line, also shown on the log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **record: float | int | str | list[float]) -> None:
        rounded = {k: _rounded(v) for k, v in record.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(rounded) + "\n")
        log.info(" ".join(f"{k}={v}" for k, v in rounded.items()))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """torch.save that leaves either the old file or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    return torch.load(path, map_location=device, weights_only=True)


class Workers:
    """The processes that train together, one a GPU: one alone, or those started by `torchrun`."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.count > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process validates, logs and saves."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count > 1:
            flat = torch.cat([t.reshape(-1) for t in tensors])
            dist.all_reduce(flat)
            flat /= self.count
            parts = flat.split([t.numel() for t in tensors])
            torch._foreach_copy_(tensors, [part.view(t.shape) for t, part in zip(tensors, parts, strict=True)])

    def average_gradients(self, model: nn.Module) -> None:
        self.average([p.grad for p in model.parameters() if p.grad is not None])

    def share(self, *tensors: Tensor) -> None:
        """Copy the first process's tensors to all."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, value: float) -> float:
        """The first process's value, without waiting for the GPU."""
        shared = torch.tensor(value, dtype=torch.float64)
        self.share(shared)
        return float(shared)

    def close(self) -> None:
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def set_up(seed: int) -> Workers:
    """Logging, seeds, matrix precision, processes."""
    workers = Workers()
    level = logging.INFO if workers.first else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return workers


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products and convolutions without tf32, for figures and tokens that others should reproduce."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
