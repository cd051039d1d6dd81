"""Statistics of a bundle's pictures, kept in a folder and continued from there."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nextscale.evaluate.image_statistics import ImageNetwork, ImageStatistics, extended, read_statistics
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.runtime._bundle import MANIFEST_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_P, resolve_top_k
from nextscale.runtime.image_io import write_files

SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled; as in `Generator.generate`."""

    seed: int = 0
    cfg_scale: float = DEFAULT_CFG_SCALE
    top_k: int | None = None
    top_p: float = DEFAULT_TOP_P


def generated_statistics(
    generator: Generator,
    network: ImageNetwork,
    sampling: Sampling,
    work: Path,
    *,
    images: int,
    batch_size: int = 8,
    on_images: Callable[[int], object] = lambda done: None,
) -> ImageStatistics:
    """Statistics of a bundle's first N pictures of a seed, with labels spread evenly over the classes.

    The folder `work` keeps them in one file a bundle and setting, written every 30 seconds and however this ends, so
    a later call with the same settings goes on from there, to more images too.

    Args:
        generator: the bundle.
        network: the feature network.
        sampling: seed, guidance and filters.
        work: an existing folder.
        images: N.
        batch_size: images at a time.
        on_images: called with the number of images finished, those of earlier calls included.
    Raises:
        NextscaleError: the folder's file is damaged, or already holds more than N images.
    """
    settings = _settings(generator.bundle, network, sampling)
    path = work / _file_name(generator.bundle, sampling, settings)
    statistics = _continued(path, settings, images)
    saved, saved_at = statistics.count if statistics else 0, time.monotonic()
    labels = evaluation_labels(generator.bundle.model.num_classes, images, sampling.seed)
    on_images(saved)
    try:
        for first in range(saved, images, batch_size):
            batch = generator.generate(labels[first : first + batch_size], first_image=first, **asdict(sampling))
            statistics = extended(statistics, batch.images, network)
            on_images(statistics.count)
            if time.monotonic() - saved_at > SAVE_EVERY:
                write_files({path: statistics.writer(settings)})
                saved, saved_at = statistics.count, time.monotonic()
    finally:
        if statistics is not None and statistics.count > saved:
            write_files({path: statistics.writer(settings)})
    if statistics is None:
        raise NextscaleError(f"images {images}: expected at least 1")
    return statistics


def _settings(bundle: Bundle, network: ImageNetwork, sampling: Sampling) -> dict[str, Any]:
    """What decides the pictures and their features; the manifest holds the digests of all the bundle's files."""
    return {
        "bundle": bundle.manifest.name,
        "manifest_sha256": hashlib.sha256((bundle.folder / MANIFEST_NAME).read_bytes()).hexdigest(),
        "image_size": bundle.model.image_side,
        "network": network.name,
        **asdict(sampling),
        "top_k": resolve_top_k(sampling.top_k, bundle.model),
    }


def _file_name(bundle: Bundle, sampling: Sampling, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "_", bundle.manifest.name)[:80]
    return f"{name}-seed{sampling.seed}-{digest[:12]}.npz"


def _continued(path: Path, settings: dict[str, Any], images: int) -> ImageStatistics | None:
    """What an earlier call left, or None."""
    if not path.exists():
        return None
    statistics, found = read_statistics(path)
    if found != settings:
        raise NextscaleError(f"{path}: made with other settings than its name says; delete the file to start again")
    if statistics.count > images:
        raise NextscaleError(
            f"{path}: already holds {statistics.count} images; ask for at least as many, or use another work folder"
        )
    return statistics
