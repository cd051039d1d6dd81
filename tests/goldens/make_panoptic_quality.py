"""Make the goldens of PQ with torchmetrics, of random boxes.

    pip install torchmetrics==1.9.0
    python tests/goldens/make_panoptic_quality.py

Writes panoptic_quality.json: seeds, sizes and what torchmetrics says.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from panoptic_pictures import PARITY, disturbed, random_segments
from torchmetrics.detection import PanopticQuality

from nextscale.paper.segmentation import Segments

CASES = [(seed, classes, pictures) for seed, (classes, pictures) in enumerate([(2, 1), (3, 5), (5, 20), (8, 40)])]


def as_colours(segments: Segments, classes: int) -> torch.Tensor:
    """[1, H, W, 2]: class and number of each pixel; a class beyond the last where there is no segment."""
    labels = np.append(classes, segments.classes)[segments.ids]
    return torch.from_numpy(np.stack([labels, segments.ids], axis=-1))[None]


def asked(seed: int, classes: int, pictures: int) -> float:
    rng = np.random.default_rng(seed)
    metric = PanopticQuality(things=set(range(classes)), stuffs=set(), allow_unknown_preds_category=True)
    for _ in range(pictures):
        expected = random_segments(rng, classes)
        metric.update(as_colours(disturbed(expected, rng), classes), as_colours(expected, classes))
    return float(metric.compute())


if __name__ == "__main__":
    found = [
        {"seed": seed, "classes": classes, "pictures": pictures, "pq": asked(seed, classes, pictures)}
        for seed, classes, pictures in CASES
    ]
    PARITY.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(PARITY, found)
