"""ImageReward, HPSv2.1 and the CLIP score, with weights that the user has: how well a picture fits its prompt.

Only the packages decide what is computed. None is installed with nextscale, and no weights come along: the adapters are
tested with stand-ins for the packages, that of CLIP with a small random one of transformers, too.
"""

from __future__ import annotations

import hashlib
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
CLIP_FILES = ("config.json", "tokenizer.json")
CLIP_BATCH = 8  # pictures at a time


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


class ClipScore:
    """The CLIP score (Radford et al., 2021): the cosine of CLIP's features of a picture and of its text.

    Args:
        folder: a CLIP as transformers saves it, with its tokenizer and what prepares its pictures.
    Raises:
        NextscaleError: a file or the package is missing, or the folder holds another model.
    """

    def __init__(self, folder: Path) -> None:
        for name in CLIP_FILES:
            _require_file(folder / name, "a CLIP that transformers saved")
        try:
            from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise _missing("--clip", error, '"nextscale[clip]"') from None
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._model, loaded = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            self._prepare: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of files, of torch, and of what it makes of them
            raise NextscaleError(f"{folder}: no CLIP of transformers: {first_line(error)}") from None
        if loaded["missing_keys"]:
            raise NextscaleError(f"{folder}: no CLIP of transformers: it has no {min(loaded['missing_keys'])}")
        self._model.eval()
        self._most_tokens = self._model.config.text_config.max_position_embeddings
        vision, digest = self._model.config.vision_config, _folder_sha256(folder)
        self.name = f"CLIP of {vision.num_hidden_layers} layers and {vision.patch_size}-pixel patches {digest[:12]}"

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """See `PromptScore`; in [-1, 1]."""
        import torch

        found = np.empty(len(images))
        with torch.inference_mode():
            for begin in range(0, len(images), CLIP_BATCH):
                part = slice(begin, begin + CLIP_BATCH)
                pictures = self._prepare([Image.fromarray(image) for image in images[part]], return_tensors="pt")
                texts = self._tokenizer(
                    list(prompts[part]),
                    padding=True,
                    truncation=True,
                    max_length=self._most_tokens,
                    return_tensors="pt",
                )
                features = self._model(**texts, **pictures)  # of length 1
                found[part] = (features.image_embeds * features.text_embeds).sum(1)
        return found


def _folder_sha256(folder: Path) -> str:
    """Of its files, one after the other."""
    digests = [file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _require_file(path: Path, expected: str = "the authors' own") -> None:
    require_regular(path)
    if not path.exists():
        raise NextscaleError(f"{path}: no such file; expected {expected}")


def _missing(option: str, error: ImportError, package: str) -> NextscaleError:
    if isinstance(error, ModuleNotFoundError):
        return NextscaleError(f"{option} needs {error.name}, which is not installed: pip install {package}")
    return NextscaleError(f"{option}: the package of {package} cannot be imported: {first_line(error)}")
