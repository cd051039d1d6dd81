"""What a model is fed, and what it gives, in files that each tool's process reads; needs NumPy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def write_feeds(feeds: Iterable[Arrays], folder: Path) -> None:
    """One .npz for each call of the model, with an array by name; the folder is made."""
    folder.mkdir(parents=True)
    for number, feed in enumerate(feeds):
        arrays: dict[str, Any] = dict(feed)
        np.savez(folder / f"{number:03}.npz", **arrays)


def read_feeds(folder: Path) -> list[dict[str, NDArray[Any]]]:
    """What `write_feeds` wrote."""
    feeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            feeds.append(dict(file))
    return feeds
