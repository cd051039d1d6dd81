"""The device that reconstruction computes on: a GPU that is missing or too small is one line, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from nextscale.runtime._errors import NextscaleError

Device = Literal["cpu", "cuda"]


def require_device(device: Device) -> None:
    """Raise NextscaleError unless torch can compute on `device`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise NextscaleError("--device cuda: this torch finds no GPU; leave it out to compute on the CPU")


@contextmanager
def on_device(device: Device, *modules: nn.Module) -> Iterator[None]:
    """Meanwhile the modules are on `device`; afterwards they are on the CPU again.

    Raises:
        NextscaleError: torch cannot compute there, or the GPU's memory is too small for what is done meanwhile.
    """
    require_device(device)
    try:
        for module in modules:
            module.to(device)
        yield
    except torch.cuda.OutOfMemoryError:
        raise NextscaleError("out of GPU memory; fewer images per step (--batch) need less") from None
    finally:
        for module in modules:
            module.to("cpu")
