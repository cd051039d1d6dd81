"""ImageReward and HPSv2.1 by their own packages, with weights that the user has: how well a picture fits its prompt.

Only the packages decide what is computed. Neither is installed with nextscale, and no weights come along: the adapters
are tested with stand-ins for the packages, not with their models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._session import first_line

REWARD_WEIGHTS, REWARD_CONFIG = "ImageReward.pt", "med_config.json"
HPS_ARCHITECTURE, HPS_VERSION = "ViT-H-14", "v2.1"


class PromptScore(Protocol):
    """What gives a number to a picture and its prompt.

    Attributes:
        name: of the score and its weights.
    """

    name: str

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Of uint8 [B, H, W, 3] and a prompt for each: float64 [B]."""


class ImageReward:
    """ImageReward-v1.0 (Xu et al., 2023) by the package `image-reward`, version 1.5.

    Args:
        folder: with ImageReward.pt and med_config.json, as the authors publish them.
    Raises:
        NextscaleError: a file or the package is missing, or the package cannot be imported or load the model.
    """

    def __init__(self, folder: Path) -> None:
        weights, config = folder / REWARD_WEIGHTS, folder / REWARD_CONFIG
        for path in (weights, config):
            _require_file(path)
        try:
            import ImageReward as package
        except ImportError as error:
            raise _missing("--image-reward", error, "image-reward==1.5") from None
        self.name = f"ImageReward {file_sha256(weights)[:12]}"
        try:
            self._model: Any = package.load(str(weights), device="cpu", med_config=str(config))
        except Exception as error:  # of files, of torch, and of what it fetches
            raise NextscaleError(f"{weights}: image-reward cannot load it: {first_line(error)}") from None

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """See `PromptScore`."""
        import torch

        with torch.inference_mode():
            pairs = zip(images, prompts, strict=True)
            return np.array([self._model.score(text, Image.fromarray(image)) for image, text in pairs], np.float64)


class HumanPreference:
    """HPSv2.1 (Wu et al., 2023) by the package `hpsv2`, in hundredths, as the paper has it.

    A picture's number is the product of its features and its prompt's, as `hpsv2.score` has it, which reads its weights
    again for each prompt; here they are read once.

    Args:
        weights: HPS_v2.1_compressed.pt, as the authors publish it.
    Raises:
        NextscaleError: the file or the package is missing, the package cannot be imported or make its model, or the
            file holds other weights.
    """

    def __init__(self, weights: Path) -> None:
        _require_file(weights)
        try:
            from hpsv2 import img_score
        except ImportError as error:
            raise _missing("--hps", error, "hpsv2") from None
        import torch

        self.name = f"HPS{HPS_VERSION} {file_sha256(weights)[:12]}"
        try:
            img_score.initialize_model()
            self._model, self._prepare = (img_score.model_dict[key] for key in ("model", "preprocess_val"))
            self._tokenizer: Any = img_score.get_tokenizer(HPS_ARCHITECTURE)
        except Exception as error:  # of files, of torch, and of what it fetches
            raise NextscaleError(f"--hps: hpsv2 cannot make its model: {first_line(error)}") from None
        try:
            self._model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["state_dict"])
        except Exception as error:  # torch and pickle each raise their own
            raise NextscaleError(f"{weights}: no weights of HPS{HPS_VERSION}: {first_line(error)}") from None
        self._model.to("cpu").eval()

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """See `PromptScore`."""
        import torch

        found = np.empty(len(images))
        with torch.inference_mode():
            for i, (image, text) in enumerate(zip(images, prompts, strict=True)):
                picture = self._prepare(Image.fromarray(image)).unsqueeze(0)
                features = self._model(picture, self._tokenizer([text]))
                found[i] = 100 * float((features["image_features"] * features["text_features"]).sum())
        return found


def _require_file(path: Path) -> None:
    require_regular(path)
    if not path.exists():
        raise NextscaleError(f"{path}: no such file; expected the authors' own")


def _missing(option: str, error: ImportError, package: str) -> NextscaleError:
    if isinstance(error, ModuleNotFoundError):
        return NextscaleError(f"{option} needs {error.name}, which is not installed: pip install {package}")
    return NextscaleError(f"{option}: the package of {package} cannot be imported: {first_line(error)}")
