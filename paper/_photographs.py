"""Photographs that a user gives to be edited: a folder of pictures, or an .npz."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._npz import read_npz
from nextscale.runtime._photo import resized
from nextscale.runtime._read_picture import read_picture
from nextscale.runtime._wording import counted, shown_value

NO_LABEL = -1


@dataclass(frozen=True)
class Photographs:
    """Photographs of a model's size.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], classes of the model; NO_LABEL where a photograph has none.
        available: how many there are to choose from.
        enlarged: how many of the N were smaller.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    available: int
    enlarged: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def digests(self) -> NDArray[np.uint64]:
        """A number of each photograph and its label, [N], by which a later run knows them."""
        found = [
            hashlib.sha256(image.tobytes() + int(label).to_bytes(8, "little", signed=True)).digest()[:8]
            for image, label in zip(self.images, self.labels, strict=True)
        ]
        return np.frombuffer(b"".join(found), "<u8")


def read_photographs(
    path: Path,
    model: ModelInfo,
    count: int,
    seed: int,
    on_images: Callable[[int, int], object] = lambda done, total: None,
) -> Photographs:
    """N of the photographs, at the model's size: the middle of each, of the model's proportions, resized by Lanczos.

    A seed draws an order, of which the first N are taken; so a larger N adds photographs to those of a smaller one.

    Args:
        path: a folder, whose files, hidden ones aside, are pictures; or an .npz with `images`, uint8 [M, H, W, 3], and
            perhaps `labels`, integers [M] in [0, num_classes), or -1 for none.
        model: the model.
        count: N; where there are fewer, all are taken.
        seed: of the order.
        on_images: called with how many were read, of how many.
    Raises:
        NextscaleError: no such folder or file, fewer than two photographs, one that is no picture, or most of them
            smaller than the model's pictures.
    """
    if path.is_dir():
        names = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        chosen = _chosen(path, len(names), count, seed)
        images, enlarged = _read_files([names[i] for i in chosen], model, on_images)
        _require_large(path, enlarged, len(chosen), model)
        return Photographs(images, np.full(len(chosen), NO_LABEL), len(names), enlarged)
    arrays = read_npz(path)
    found, labels = arrays.get("images"), arrays.get("labels")
    if found is None or found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or 0 in found.shape[1:]:
        shown = "none" if found is None else shown_value(found)
        raise NextscaleError(f"{path}: images: expected uint8 [N, H, W, 3], found {shown}")
    if labels is not None and (labels.shape != found.shape[:1] or labels.dtype.kind not in "iu"):
        raise NextscaleError(f"{path}: labels: expected integers [{len(found)}], found {shown_value(labels)}")
    chosen = _chosen(path, len(found), count, seed)
    taken = np.full(len(chosen), NO_LABEL) if labels is None else labels[chosen].astype(np.int64)
    if ((taken < NO_LABEL) | (taken >= model.num_classes)).any():
        raise NextscaleError(
            f"{path}: labels: expected 0 to {model.num_classes - 1}, the model's classes, or {NO_LABEL} for none; "
            f"found {taken.min()} to {taken.max()}"
        )
    _require_large(path, len(chosen) if _is_small(found[0], model) else 0, len(chosen), model)
    images = np.stack([fitted(found[i], model) for i in chosen])
    on_images(len(images), len(images))
    return Photographs(images, taken, len(found))


def fitted(pixels: NDArray[np.uint8], model: ModelInfo) -> NDArray[np.uint8]:
    """The middle of a picture [h, w, 3], of the model's proportions and as large as it can be, at the model's size."""
    (height, width), (tall, wide) = pixels.shape[:2], model.image_size
    scale = _scale(pixels, model)
    h, w = max(1, round(tall * scale)), max(1, round(wide * scale))
    top, left = (height - h) // 2, (width - w) // 2
    return resized(np.ascontiguousarray(pixels[top : top + h, left : left + w]), model.image_size)


def _chosen(path: Path, available: int, count: int, seed: int) -> NDArray[np.int64]:
    if available < 2:
        raise NextscaleError(f"{path}: {available} photographs; expected at least 2")
    return np.random.default_rng(seed).permutation(available)[:count]


def _read_files(
    names: Sequence[Path], model: ModelInfo, on_images: Callable[[int, int], object]
) -> tuple[NDArray[np.uint8], int]:
    """The pictures, and how many of them were smaller."""
    images, enlarged = np.empty((len(names), *model.image_size, 3), np.uint8), 0
    for i, name in enumerate(names):
        pixels = read_picture(name).pixels
        images[i] = fitted(pixels, model)
        enlarged += _is_small(pixels, model)
        on_images(i + 1, len(names))
    return images, enlarged


def _scale(pixels: NDArray[np.uint8], model: ModelInfo) -> float:
    """How many times as large as the model's pictures a picture is, along the side that has less."""
    (height, width), (tall, wide) = pixels.shape[:2], model.image_size
    return float(min(height / tall, width / wide))


def _is_small(pixels: NDArray[np.uint8], model: ModelInfo) -> bool:
    return _scale(pixels, model) < 1


def _require_large(path: Path, enlarged: int, count: int, model: ModelInfo) -> None:
    """Refuse photographs that are mostly too small; a few, as ImageNet's validation set has, are enlarged."""
    if 2 * enlarged > count:
        height, width = model.image_size
        raise NextscaleError(
            f"{path}: {enlarged} of {counted(count, 'photograph')} are smaller than the model's pictures, {height} x "
            f"{width} pixels; give larger ones, as enlarged photographs are blurred"
        )
