"""Figures that a table measures on one bundle, kept in a folder and gone on with there."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nextscale.runtime._bundle import MANIFEST_NAME, Bundle

SAVE_EVERY = 30.0  # seconds
Kept = TypeVar("Kept", bound="Figures")


class Figures(Protocol):
    """Figures of the first n of some pictures."""

    def __len__(self) -> int:
        """n."""

    def extended(self: Kept, other: Kept) -> Kept:
        """These pictures, and then the others."""

    def first(self: Kept, count: int) -> Kept:
        """Of the first pictures alone."""


def bundle_sha256(bundle: Bundle) -> str:
    """Of the manifest, which holds the digests of all the bundle's files."""
    return hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest()


def file_of(bundle: Bundle, work: Path, settings: Mapping[str, Any], form: str) -> Path:
    """The file in `work` of what is measured of a bundle's content with these settings.

    Args:
        settings: all else that decides the figures, plain values.
        form: of the name, with {bundle} and {digest}.
    """
    told = {"manifest_sha256": bundle_sha256(bundle), **settings}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return work / form.format(bundle=re.sub(r"[^\w.-]+", "_", bundle.manifest.name)[:80], digest=digest[:12])


def measure_on(
    results: Kept | None,
    count: int,
    batch_size: int,
    measure: Callable[[range], Kept],
    keep: Callable[[Kept], object],
    on_images: Callable[[int], object],
) -> Kept:
    """Figures of all pictures: those that are there, and the others batch by batch.

    Args:
        results: what an earlier call left; None: nothing.
        count: of the pictures, at least 1.
        batch_size: pictures at a time.
        measure: gives the figures of some pictures.
        keep: writes figures; called every `SAVE_EVERY` seconds and however this ends, if there are new ones.
        on_images: called with the number of pictures finished, those of earlier calls included.
    """
    saved, saved_at = 0 if results is None else len(results), time.monotonic()
    on_images(min(saved, count))
    try:
        for first in range(saved, count, batch_size):
            found = measure(range(first, min(first + batch_size, count)))
            results = found if results is None else results.extended(found)
            on_images(len(results))
            if time.monotonic() - saved_at > SAVE_EVERY:
                keep(results)
                saved, saved_at = len(results), time.monotonic()
    finally:
        if results is not None and len(results) > saved:
            keep(results)
    assert results is not None  # there is a picture
    return results.first(count)
