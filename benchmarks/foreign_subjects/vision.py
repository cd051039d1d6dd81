"""Vision transformers of torchvision and timm with random weights, as torch.onnx exports them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from foreign_tools.feeds import Arrays
from foreign_tools.relative_error import relative_error
from numpy.typing import NDArray
from PIL import Image

from foreign_subjects.exporting import export
from foreign_subjects.packages import packages
from foreign_subjects.pictures import VIEWS, calibration_pictures, normalized, test_pictures
from foreign_subjects.subject import Subject

TORCHVISION = ("torchvision==0.28.0",)
TIMM = ("timm==1.0.31", *TORCHVISION)
SIZE, SEED = 224, 0


def torchvision_subject(name: str, work: Path) -> Subject:
    """A model of torchvision's."""
    return _subject("torchvision", name, TORCHVISION, work)


def timm_subject(name: str, work: Path) -> Subject:
    """A model of timm's."""
    return _subject("timm", name, TIMM, work)


def _subject(library: str, name: str, wanted: Sequence[str], work: Path) -> Subject:
    def measure(exact: Sequence[Arrays], found: Sequence[Arrays]) -> list[str]:
        return [f"{relative_error(exact, found):.4f}"]

    calibration, test = calibration_pictures(work)[:: len(VIEWS)], test_pictures(work)
    return Subject(
        title=f"{name} of {library}, random weights",
        origin=(
            f"model: {name} of {wanted[0]}, weights of seed {SEED}, exported by torch.onnx at {SIZE} pixels: what can "
            "be said of it is speed, and whether layers are taken; errors are of a function that nobody learned",
            f"pictures: {len(test)} to test, {len(calibration)} others to calibrate on "
            "(benchmarks/foreign_subjects/pictures.json)",
        ),
        model=export(
            "export_vision",
            packages(wanted, work),
            work / name,
            library=library,
            name=name,
            size=SIZE,
            seed=SEED,
        ),
        calibration=[{"pixels": pixels(picture)} for picture in calibration],
        test=[{"pixels": pixels(picture)} for picture in test],
        headings=("relative error",),
        measure=measure,
    )


def pixels(picture: Image.Image) -> NDArray[np.float32]:
    """A picture in RGB, squeezed into a square; [1, 3, SIZE, SIZE]."""
    return normalized(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
