"""The standard feature network of FID and IS, with weights that the user has."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.image_statistics import Features
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._regular_file import require_regular

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # how its sha256 begins


def require_standard_weights(weights: Path) -> None:
    """Raise NextscaleError unless FID and IS by this file are the standard ones."""
    found = file_sha256(weights)
    if not found.startswith(SHA256):
        raise NextscaleError(
            f"{weights}: not the weights of the standard FID and IS: its sha256 begins with {found[: len(SHA256)]}; "
            f"expected {SHA256}, torch-fidelity's {FILE}"
        )


class InceptionNetwork:
    """Inception v3 of torch-fidelity, TensorFlow's of 2015: 2048 features and 1008 class probabilities.

    The probabilities are the softmax of the logits without bias, as in the published IS.

    Args:
        weights: the file that torch-fidelity calls weights-inception-2015-12-05-6726825d.pth; by other weights of
            these shapes figures have names that say so.
        device: "cpu" or "cuda".
    Raises:
        NextscaleError: torch-fidelity is not installed, or the file is not these weights.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        try:
            import torch
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise NextscaleError(
                f'--inception-weights needs {error.name}, which is not installed: pip install "nextscale[inception]"'
            ) from None
        require_regular(weights)
        try:
            # torch-fidelity unpickles whatever the file holds; after this it is known to hold tensors alone.
            torch.load(weights, map_location="cpu", weights_only=True)
            model = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights))
        except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, TypeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NextscaleError(f"{weights}: no Inception weights of torch-fidelity: {reason}") from None
        digest = file_sha256(weights)
        is_standard = digest.startswith(SHA256)
        self.metrics = ("FID", "IS") if is_standard else ("FID (other weights)", "IS (other weights)")
        self.name = f"inception-v3 {digest[:12]}"
        self.device = device
        self._model: Any = model.to(device)

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of uint8 [B, H, W, 3], RGB: float32 [B, 2048], and probabilities, float32 [B, 1008]."""
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            pooled, logits = self._model(torch.tensor(images).permute(0, 3, 1, 2).to(self.device))
            return Features(pooled.cpu().numpy(), logits.softmax(1).cpu().numpy())
