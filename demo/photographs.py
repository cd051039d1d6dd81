"""The photographs the demo model is trained on: 64x64 Tiny-ImageNet, read from `.npz` shards."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 64
PAD = 4  # how far a training crop may lie outside the photograph; the border is mirrored


def read_shard(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decode one shard, whose JPEG bodies are stored without their common headers.

    Returns:
        images uint8 [N, 64, 64, 3], labels int64 [N] in [0, 200), and 200 class names.
    """
    with np.load(path) as shard:
        header_ends = np.cumsum([0, *shard["header_len"]])
        headers, body, offsets, header_ids = shard["headers"], shard["body"], shard["off"], shard["hid"]
        labels, names = shard["label"].astype(np.int64), shard["names"].tolist()
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)

    def decode(i: int) -> None:
        h = header_ids[i]
        header, end = headers[header_ends[h] : header_ends[h + 1]], b"\xff\xd9"
        jpeg = header.tobytes() + body[offsets[i] : offsets[i + 1]].tobytes() + end
        images[i] = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(labels))))
    return images, labels, names


@dataclass
class Photographs:
    """Training and validation photographs, uint8 [N, 3, 64, 64], with labels among the training classes.

    A validation photograph of a class without training photographs has the label -1.
    """

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    class_names: list[str]

    @classmethod
    def load(cls, folder: Path, *, limit: int | None = None) -> Photographs:
        """Read every `tin_train_*.npz` and `tin_val.npz` of a folder; `limit` keeps that many of each (for tests)."""
        shards = [read_shard(path) for path in sorted(folder.glob("tin_train_*.npz"))]
        if not shards:
            raise FileNotFoundError(f"no tin_train_*.npz in {folder}")
        names = shards[0][2]
        train_labels = np.concatenate([labels for _, labels, _ in shards])
        classes = np.unique(train_labels)
        relabel = np.full(len(names), -1)
        relabel[classes] = np.arange(len(classes))
        val, val_labels, _ = read_shard(folder / "tin_val.npz")
        train = np.concatenate([images for images, _, _ in shards])
        keep = slice(None) if limit is None else slice(None, None, max(1, len(train) // limit))
        keep_val = slice(None) if limit is None else slice(None, None, max(1, len(val) // limit))
        return cls(
            train=torch.from_numpy(train[keep]).permute(0, 3, 1, 2).contiguous(),
            train_labels=torch.from_numpy(relabel[train_labels[keep]]),
            val=torch.from_numpy(val[keep_val]).permute(0, 3, 1, 2).contiguous(),
            val_labels=torch.from_numpy(relabel[val_labels[keep_val]]),
            class_names=[names[c] for c in classes],
        )


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


class Augmenter:
    """Random mirrored and shifted crops of uint8 photographs, on the photographs' device."""

    def __init__(self, images: Tensor) -> None:
        chunks = images.split(4096)
        padded = [F.pad(c.float(), (PAD, PAD, PAD, PAD), mode="reflect").to(torch.uint8) for c in chunks]
        self.padded = torch.cat(padded)
        self.device = images.device

    def __call__(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Crops of the photographs at `indices` [B]: float32 [B, 3, 64, 64] in [-1, 1]."""
        n, span = len(indices), torch.arange(SIDE, device=self.device)
        shift = torch.randint(0, 2 * PAD + 1, (2, n, 1), generator=generator, device=self.device)
        flip = torch.rand(n, 1, generator=generator, device=self.device) < 0.5
        rows = shift[0] + span
        columns = shift[1] + torch.where(flip, SIDE - 1 - span, span)
        crops = self.padded[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return to_float(crops.permute(0, 3, 1, 2))


def epochs(count: int, batch: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Endless batches of indices, each epoch a new permutation; an incomplete batch is dropped."""
    while True:
        order = torch.randperm(count, generator=generator, device=device)
        yield from order[: count // batch * batch].view(-1, batch)
