"""Photographs that packages ship: fifteen to test on, and views of others to calibrate on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from foreign_subjects.packages import PackagedFile

LIST = Path(__file__).parent / "pictures.json"
# Of each picture to calibrate on: left, top, right and bottom as shares of its sides, and whether it is mirrored.
VIEWS = (
    ((0.0, 0.0, 1.0, 1.0), False),
    ((0.0, 0.0, 1.0, 1.0), True),
    ((0.0, 0.1, 0.7, 0.8), False),
    ((0.3, 0.2, 1.0, 0.9), True),
)


def test_pictures(work: Path) -> list[Image.Image]:
    """The pictures that no tool sees, in RGB."""
    return [_read(file, work) for file in listed("test")]


def calibration_pictures(work: Path) -> list[Image.Image]:
    """Each of VIEWS of the others."""
    return [view for file in listed("calibration") for view in views(_read(file, work))]


def views(picture: Image.Image) -> list[Image.Image]:
    """The picture whole, in parts, and mirrored."""
    found = []
    for (left, top, right, bottom), mirrored in VIEWS:
        width, height = picture.size
        part = picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
        found.append(ImageOps.mirror(part) if mirrored else part)
    return found


def listed(kind: str) -> list[PackagedFile]:
    """Of a kind, "test" or "calibration", the files."""
    known = json.loads(LIST.read_text(encoding="utf-8"))
    return [PackagedFile(known["packages"][package], path, sha256) for package, path, sha256 in known[kind]]


def normalized(picture: Image.Image) -> NDArray[np.float32]:
    """A picture in RGB by the mean and deviation of ImageNet's, as models trained on it read it; [1, 3, H, W]."""
    scaled = (np.asarray(picture) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _read(file: PackagedFile, work: Path) -> Image.Image:
    with Image.open(file.get(work)) as picture:
        return picture.convert("RGB")
