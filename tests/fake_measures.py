"""Stand-ins for what judges pictures: they need no weights and take pictures of any size."""

from __future__ import annotations

import numpy as np

from nextscale.evaluate.image_statistics import Features


class FakeDistance:
    """The mean difference of two pictures' numbers, as a share of all there is."""

    least_side = 1

    def __init__(self, backbone: str = "fake", **options: object) -> None:
        self.name = f"fake {backbone}"

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        assert first.shape == second.shape
        assert first.dtype == second.dtype == np.uint8
        return np.abs(first / 255 - second / 255).mean((1, 2, 3)).astype(np.float32)


class FakeClassifier:
    """The darker a picture, the more it is a goldfish (class 1); what else it is goes to a tabby cat (class 281)."""

    name, metrics = "fake classifier", ("FID", "IS")

    def __init__(self, **options: object) -> None:
        """As `FeatureNetwork`."""

    def __call__(self, images: np.ndarray) -> Features:
        probabilities = np.zeros((len(images), 1000), np.float32)
        probabilities[:, 1] = 1 - images.mean((1, 2, 3)) / 255
        probabilities[:, 281] = 1 - probabilities[:, 1]
        return Features(np.zeros((len(images), 2), np.float32), probabilities)
