"""Sizes of models that the shapes and names of their tensors tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError

# Far above any release; a file that says more is refused before a model of that size is made.
MAX_BLOCKS, MAX_LEVELS = 256, 8


class Sizes:
    """Sizes that tensors tell, where they are there and have the dimensions they should."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._state_dict = state_dict

    def of(self, name: str, ndim: int, axis: int) -> int | None:
        """The size along an axis of the tensor `name`."""
        tensor = self._state_dict.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim == ndim and tensor.numel() else None


def width_of_transformer(widths: Iterable[int | None], source: str | Path) -> int:
    """What most of the tensors say that tell it; None of those that do not.

    Raises:
        CheckpointError: none tells it.
    """
    known = [width for width in widths if width is not None]
    if not known:
        raise CheckpointError(f"{source}: none of its tensors tells the width of the model")
    return Counter(known).most_common(1)[0][0]


def autoencoder_shape(
    state_dict: Mapping[str, Tensor], source: str | Path, default_ch: int
) -> tuple[int, tuple[int, ...], int]:
    """ch, ch_mult and num_res_blocks of `models.autoencoder.Encoder`, whose tensors' names begin with `encoder.`.

    Args:
        state_dict: tensors by their names in the model.
        source: what to call the state dict in errors.
        default_ch: where no tensor tells ch.
    Raises:
        CheckpointError: far too many levels or blocks, or a level's width is no multiple of ch.
    """
    sizes = Sizes(state_dict)
    levels = count_indices(state_dict, r"encoder\.down\.(\d+)\.", "levels of resolution", MAX_LEVELS, source)
    blocks = count_indices(state_dict, r"encoder\.down\.0\.block\.(\d+)\.", "blocks of a level", MAX_BLOCKS, source)
    widths = [_width_of_level(sizes, i) for i in range(levels)]
    known = [width for width in widths if width is not None]
    ch = sizes.of("encoder.conv_in.weight", 4, 0) or (known[0] if known else default_ch)
    if any(width % ch for width in known):
        raise CheckpointError(f"{source}: the encoder's widths {known} are not multiples of the first one, {ch}")
    return ch, tuple((width or ch) // ch for width in widths), blocks


def _width_of_level(sizes: Sizes, level: int) -> int | None:
    block = f"encoder.down.{level}.block.0"
    return sizes.of(f"{block}.conv1.weight", 4, 0) or sizes.of(f"{block}.norm2.weight", 1, 0)


def count_indices(names: Iterable[str], pattern: str, what: str, limit: int, source: str | Path) -> int:
    """How many different indices the pattern's group takes."""
    found = len({match[1] for name in names if (match := re.match(pattern, name))})
    require_at_most(limit, found, what, source)
    return found


def require_at_most(limit: int, found: int, what: str, source: str | Path) -> None:
    """Refuse more than `limit`."""
    if found > limit:
        raise CheckpointError(f"{source}: expected at most {limit} {what}, found {found}")
