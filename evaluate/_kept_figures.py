"""Figures that are measured on a bundle's pictures, kept in a folder and gone on with there."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._errors import NextscaleError, OutputError, UnreadableError
from nextscale.runtime._regular_file import read_regular
from nextscale.runtime._wording import shown_text

Value = TypeVar("Value")
SAVE_EVERY = 30.0  # seconds
MOST_READ = 64 * 2**20  # bytes of JSON
SHOWN = 160  # characters of what is wrong with a file


def bundle_sha256(bundle: Bundle) -> str:
    """Of the manifest, which holds the digests of all the bundle's files."""
    return hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest()


def file_of(bundle: Bundle, work: Path, settings: Mapping[str, Any], form: str) -> Path:
    """The file in `work` of what is measured of a bundle's content with these settings.

    Args:
        settings: all else that decides the figures, plain values.
        form: of the name, with {bundle} and {digest}.
    """
    digest = digest_of({"manifest_sha256": bundle_sha256(bundle), **settings})
    return work / form.format(bundle=plain_name(bundle.manifest.name), digest=digest)


def plain_name(name: str) -> str:
    """For a file: letters, digits, points and hyphens, not too many."""
    return re.sub(r"[^\w.-]+", "_", name)[:80]


def digest_of(told: Mapping[str, Any]) -> str:
    """Of plain values, for a file's name."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def reading(path: Path, damaged: str) -> Iterator[None]:
    """Whatever goes wrong while something is read is one line.

    Args:
        path: of what is read.
        damaged: how the line begins: what is damaged, and what to do.
    Raises:
        NextscaleError: the block raised one, or what values of other types or sizes raise.
    """
    try:
        yield
    except (OutputError, UnreadableError):
        raise
    except (NextscaleError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = shown_text(str(error).removeprefix(str(path)).lstrip(":/ "), SHOWN)
        raise NextscaleError(f"{damaged} ({reason})") from None


def kept_file(path: Path, again: str) -> AbstractContextManager[None]:
    """`reading` a file that an earlier call left; again: what is done again without it, "compare that bundle again"."""
    return reading(path, f"{path}: damaged; delete the file to {again}")


def read_json(path: Path) -> JsonNode:
    """A JSON document of which nothing is trusted.

    Raises:
        NextscaleError: the file cannot be read.
        ValueError, RecursionError: it is no JSON, or nested too deeply.
    """
    return JsonNode.parse(read_regular(path, MOST_READ, ""), str(path))


def number_or_nan(node: JsonNode) -> float:
    """A finite number, or NaN, which a figure of one picture has for its error."""
    return math.nan if node.value != node.value else node.number()


def or_none(node: JsonNode, read: Callable[[JsonNode], Value]) -> Value | None:
    """What is read of a value that may be null."""
    return None if node.value is None else read(node)


def measure_on(
    begin: int,
    count: int,
    batch_size: int,
    measure: Callable[[range], object],
    keep: Callable[[], object],
    on_images: Callable[[int], object],
) -> None:
    """Measure the pictures that are left, batch by batch.

    Args:
        begin: how many an earlier call has measured.
        count: of all pictures.
        batch_size: pictures at a time.
        measure: measures some pictures, and adds them to those before.
        keep: writes all that is measured; called every `SAVE_EVERY` seconds and however this ends, if there are more.
        on_images: called with the number of pictures finished, those of earlier calls included.
    """
    done, saved, saved_at = begin, begin, time.monotonic()
    on_images(min(begin, count))
    try:
        for first in range(begin, count, batch_size):
            part = range(first, min(first + batch_size, count))
            measure(part)
            done = part.stop
            on_images(done)
            if time.monotonic() - saved_at > SAVE_EVERY:
                keep()
                saved, saved_at = done, time.monotonic()
    finally:
        if done > saved:
            keep()
