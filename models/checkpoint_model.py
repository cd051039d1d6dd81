"""The model that a checkpoint's tensors are of: sizes that shapes tell, the model without memory, what misfits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from nextscale.models.checkpoint_file import CheckpointError, first_line
from nextscale.models.checkpoint_weights import listed

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")
Shapes = Mapping[str, tuple[int, ...]]


class Sizes:
    """Sizes that tensors tell, where they are there and have the dimensions they should."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._state_dict = state_dict

    def of(self, name: str, ndim: int, axis: int) -> int | None:
        tensor = self._state_dict.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim == ndim and tensor.numel() else None


def count_indices(names: Iterable[str], pattern: str, what: str, limit: int, source: str | Path) -> int:
    """How many different indices the pattern's group takes.

    Raises:
        CheckpointError: more than the limit.
    """
    found = len({match[1] for name in names if (match := re.match(pattern, name))})
    require_at_most(limit, found, what, source)
    return found


def require_at_most(limit: int, found: int, what: str, source: str | Path) -> None:
    """Refuse sizes far above any release, before a model of that size is made.

    Raises:
        CheckpointError: found is above the limit.
    """
    if found > limit:
        raise CheckpointError(f"{source}: expected at most {limit} {what}, found {found}")


def skeleton(model_type: Callable[[Config], Model], config: Config, source: str | Path = "the preset") -> Model:
    """The model without memory for its tensors.

    Raises:
        CheckpointError: none can be built.
    """
    try:
        with torch.device("meta"):
            return model_type(config)
    except (ValueError, RuntimeError) as error:  # torch's own, of sizes beyond all bounds
        raise CheckpointError(f"{source}: no model can be built from {config}: {first_line(error)}") from error


def differences(expected: Shapes, found: Shapes) -> str:
    """What misfits, a line each for what is missing, unexpected and misshapen."""
    kinds = {
        "missing": [f"{name} (expected {list(shape)})" for name, shape in expected.items() if name not in found],
        "unexpected": [f"{name} (found {list(shape)})" for name, shape in found.items() if name not in expected],
        "misshapen": [
            f"{name} (expected {list(shape)}, found {list(found[name])})"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    return "".join(f"\n  {len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)
