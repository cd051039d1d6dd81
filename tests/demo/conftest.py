"""A data set in the format of the real one: gradients of colour instead of photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.demo.photographs import SIDE

torch.set_num_threads(1)

SCAN = b"\xff\xda"  # begins the part of a JPEG file that is its own
END = b"\xff\xd9"
CLASS_NAMES = ["ant", "bee", "cow", "doe"]
TRAIN_LABELS = [1, 3, 1, 3, 3, 1]
VAL_LABELS = [0, 1, 2, 3]


def gradients(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 64, 64, 3]: each runs from one random colour to another, left to right."""
    first, last = np.random.default_rng(seed).uniform(0, 255, (2, count, 1, 1, 3))
    ramp = np.linspace(0, 1, SIDE)[:, None]
    return np.broadcast_to(first + ramp * (last - first), (count, SIDE, SIDE, 3)).round().astype(np.uint8)


def write_shard(path: Path, images: np.ndarray, labels: list[int]) -> None:
    """What `read_shard` reads: one header for all, and of each image what follows it."""
    bodies = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=95)
        header, scan, rest = file.getvalue().partition(SCAN)
        bodies.append((scan + rest).removesuffix(END))
    np.savez(
        path,
        headers=np.frombuffer(header, np.uint8),
        header_len=[len(header)],
        hid=np.zeros(len(images), np.int64),
        body=np.frombuffer(b"".join(bodies), np.uint8),
        off=np.cumsum([0, *map(len, bodies)]),
        label=labels,
        names=CLASS_NAMES,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of three training images, in two of four classes; one validation image of each class."""
    folder = tmp_path_factory.mktemp("data")
    images = gradients(6, seed=0)
    write_shard(folder / "tin_train_0.npz", images[:3], TRAIN_LABELS[:3])
    write_shard(folder / "tin_train_1.npz", images[3:], TRAIN_LABELS[3:])
    write_shard(folder / "tin_val.npz", gradients(4, seed=1), VAL_LABELS)
    return folder


@pytest.fixture
def global_state() -> Iterator[None]:
    """Put back what the training programs set for the whole process."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark
