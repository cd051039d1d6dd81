"""Features of pictures by the VGG16 that comes with LPIPS: their Frechet distance is no FID, which is Inception's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.lpips import Lpips


class Vgg16Features:
    """The mean over positions of relu5_3, 512 numbers a picture, at the picture's own size.

    Args:
        threads: of torch in this process; 0 leaves its default.
    Raises:
        NextscaleError: as `Lpips`.
    """

    name = "VGG16 relu5_3, mean over positions"

    def __init__(self, threads: int = 0) -> None:
        self._network = Lpips("vgg", threads=threads, batch_size=1)  # 1 GB of a picture of 1024 pixels

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of uint8 [B, H, W, 3]: float32 [B, 512]."""
        return self._network.last_features(images)
