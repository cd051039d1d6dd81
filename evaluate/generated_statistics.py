"""Statistics of a bundle's pictures, kept in a folder and continued from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import text_subjects
from nextscale.evaluate._kept_figures import bundle_sha256, file_of, kept_file, measure_on
from nextscale.evaluate.image_statistics import ImageNetwork, ImageStatistics, extended, read_statistics
from nextscale.evaluate.teacher_forced import evaluation_labels
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_P, resolve_top_k
from nextscale.runtime.image_io import write_files


@dataclass(frozen=True)
class Sampling:
    """How pictures of classes are sampled; as in `Generator.generate`."""

    seed: int = 0
    cfg_scale: float = DEFAULT_CFG_SCALE
    top_k: int | None = None
    top_p: float = DEFAULT_TOP_P


@dataclass(frozen=True)
class TextSampling:
    """How pictures of text are sampled.

    Attributes:
        prompts: at least one; each picture has one of them, in turn.
        seed: of the pictures, and of the order of the prompts.
        cfg_scale: guidance; None is the bundle's default.
        size: the index of the size of all pictures.
    """

    prompts: tuple[str, ...]
    seed: int = 0
    cfg_scale: float | None = None
    size: int = 0


def generated_statistics(
    generator: Generator,
    network: ImageNetwork,
    sampling: Sampling | TextSampling,
    work: Path,
    *,
    images: int,
    batch_size: int = 8,
    on_images: Callable[[int], object] = lambda done: None,
) -> ImageStatistics:
    """Statistics of a bundle's first N pictures of a seed, with labels spread evenly over the classes or of prompts.

    The folder `work` keeps them in one file a bundle and setting, written every 30 seconds and however this ends, so
    a later call with the same settings goes on from there, to more images too.

    Args:
        generator: the bundle.
        network: the feature network.
        sampling: seed, guidance and filters, or prompts, which the bundle's own text encoder reads.
        work: an existing folder.
        images: N.
        batch_size: images at a time.
        on_images: called with the number of images finished, those of earlier calls included.
    Raises:
        NextscaleError: the folder's file is damaged, or already holds more than N images; a prompt is empty, too long
            or no text, or there is no text encoder.
    """
    path, settings = _kept(generator, network, sampling, work)
    subjects = _subjects(generator, sampling, images)

    def draw(part: range) -> NDArray[np.uint8]:
        request = subjects[part.start : part.stop].settings(generator.bundle.manifest)
        labels = request.pop("class_labels")
        return generator.generate(labels, first_image=part.start, **request, **_filters(sampling)).images

    return continued_statistics(path, settings, draw, network, images, batch_size, on_images)


def continued_statistics(
    path: Path,
    settings: Mapping[str, Any],
    draw: Callable[[range], NDArray[np.uint8]],
    network: ImageNetwork,
    images: int,
    batch_size: int,
    on_images: Callable[[int], object],
) -> ImageStatistics:
    """Statistics of pictures, gone on with where an earlier call left them in the file, written every 30 seconds.

    Args:
        path: of the file.
        settings: all that decides the pictures and their features, plain values.
        draw: gives some of the pictures, uint8 [B, H, W, 3].
        network: the feature network.
        images: their number.
        batch_size: images at a time.
        on_images: called with the number of images finished, those of earlier calls included.
    Raises:
        NextscaleError: the file is damaged, of other settings, or already holds more images.
    """
    statistics = _continued(path, settings, images)

    def measure(part: range) -> None:
        nonlocal statistics
        statistics = extended(statistics, draw(part), network)

    def keep() -> None:
        assert statistics is not None
        write_files({path: statistics.writer(settings)})

    measure_on(statistics.count if statistics else 0, images, batch_size, measure, keep, on_images)
    if statistics is None:
        raise NextscaleError(f"images {images}: expected at least 1")
    return statistics


def finished_images(generator: Generator, network: ImageNetwork, sampling: Sampling | TextSampling, work: Path) -> int:
    """How many of a bundle's pictures earlier calls have finished."""
    path, _ = _kept(generator, network, sampling, work)
    return _read(path)[0].count if path.exists() else 0


def _kept(
    generator: Generator, network: ImageNetwork, sampling: Sampling | TextSampling, work: Path
) -> tuple[Path, dict[str, Any]]:
    """The file of the statistics, and what they are of."""
    bundle = generator.bundle
    # Where stock products saturate, fused ones do not.
    settings = _settings(bundle, network, sampling) | {"operators": generator.ops.variant}
    return file_of(bundle, work, settings, f"{{bundle}}-seed{sampling.seed}-{{digest}}.npz"), settings


def _subjects(generator: Generator, sampling: Sampling | TextSampling, images: int) -> Subjects:
    """What the pictures are of; those of more images begin with those of fewer."""
    if isinstance(sampling, TextSampling):
        return text_subjects(generator, sampling.prompts, images, sampling.seed, sampling.size)[0]
    return Subjects.of_classes(evaluation_labels(generator.bundle.model.num_classes, images, sampling.seed))


def _filters(sampling: Sampling | TextSampling) -> dict[str, Any]:
    """Of a request, besides what its pictures are of."""
    if isinstance(sampling, Sampling):
        return asdict(sampling)
    return {"seed": sampling.seed, "cfg_scale": sampling.cfg_scale}


def _settings(bundle: Bundle, network: ImageNetwork, sampling: Sampling | TextSampling) -> dict[str, Any]:
    """What decides the pictures and their features; the manifest holds the digests of all the bundle's files."""
    settings = {
        "bundle": bundle.manifest.name,
        "manifest_sha256": bundle_sha256(bundle),
        "network": network.name,
        **asdict(sampling),
    }
    if isinstance(sampling, Sampling):
        return settings | {"image_size": bundle.model.image_side, "top_k": resolve_top_k(sampling.top_k, bundle.model)}
    pixels = list(bundle.manifest.models[sampling.size].image_size)
    return settings | {"prompts": list(sampling.prompts), "image_size": pixels}


def _read(path: Path) -> tuple[ImageStatistics, dict[str, Any]]:
    with kept_file(path, "start again"):
        return read_statistics(path)


def _continued(path: Path, settings: Mapping[str, Any], images: int) -> ImageStatistics | None:
    """What an earlier call left, or None."""
    if not path.exists():
        return None
    statistics, found = _read(path)
    if found != settings:
        raise NextscaleError(f"{path}: made with other settings than its name says; delete the file to start again")
    if statistics.count > images:
        raise NextscaleError(
            f"{path}: already holds {statistics.count} images; ask for at least as many, or use another work folder"
        )
    return statistics
