"""The texts of a request: prompts, which the bundle's text encoder turns into features, or features of the caller's.

A text is encoded once, however many images have it, alone and never padded. What images of one batch have is padded
with zeros to the longest of them, and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import Manifest, RequestInput
from nextscale.runtime._uniforms import uniforms
from nextscale.runtime._wording import shown_value

# The settings that are texts, by the kinds of the inputs that they become: features, and their mask.
TEXT_SETTINGS = {
    "prompts": ("text_features", "text_mask"),
    "negative": ("negative_features", "negative_mask"),
}
Encode = Callable[[NDArray[np.int64]], NDArray[np.float32]]
_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)


@dataclass(frozen=True)
class Texts:
    """One text of each of B images, before or after it was encoded.

    Attributes:
        features, mask: the inputs that the texts become.
        distinct: each text once: token ids int64 [N], and after `encoded` features float32 [N, Ct].
        index: int64 [B], which of them each image has.
    """

    features: RequestInput
    mask: RequestInput | None
    distinct: tuple[NDArray[Any], ...]
    index: NDArray[np.int64]

    def encoded(self, encode: Encode) -> Texts:
        """With the features of each text in place of its token ids.

        Args:
            encode: the features float32 [N, Ct] of token ids int64 [N].
        """
        return replace(self, distinct=tuple(encode(token_ids) for token_ids in self.distinct))

    def arrays(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Inputs of images start to stop - 1: features [B, Lt, Ct] and mask [B, Lt]."""
        features, mask = padded([self.distinct[number] for number in self.index[start:stop]])
        return {self.features.name: features} | ({} if self.mask is None else {self.mask.name: mask})


def padded(texts: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Texts float32 [N, Ct] in one tensor [B, Lt, Ct], zeros behind each, and its mask int64 [B, Lt]."""
    longest = max(len(text) for text in texts)
    features = np.zeros((len(texts), longest, texts[0].shape[1]), np.float32)
    mask = np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        features[row, : len(text)], mask[row, : len(text)] = text, 1
    return features, mask


def probe_features(lengths: Sequence[int], width: int) -> list[NDArray[np.float32]]:
    """Features that are the same everywhere: float32 [N, width] each, 2 u - 1 of the uniforms u of seed 0."""
    return [2 * uniforms(0, [image], length * width).reshape(length, width) - 1 for image, length in enumerate(lengths)]


def texts_of_prompts(bundle: Bundle, setting: str, value: Any, images: int | None) -> Texts:
    """Tokenize the texts of a setting.

    Args:
        bundle: its tokenizer, and the inputs that texts become.
        setting: one of TEXT_SETTINGS.
        value: a text for each image, or of negative ones one for all.
        images: B; None where the texts tell it.
    Raises:
        RequestError: the bundle takes no such texts, or a text is empty, too long or no text.
    """
    features, mask = (bundle.manifest.input_of_kind(kind) for kind in TEXT_SETTINGS[setting])
    if features is None:
        names = ", ".join(item.name for item in bundle.manifest.request)
        raise RequestError(f"{setting}: this bundle has no such input; it takes {names}")
    _require_text_encoder(bundle, setting, features)
    if setting == "negative" and isinstance(value, str):
        value = [value] * (images or 1)
    elif isinstance(value, _NO_LISTS) or not hasattr(value, "__iter__"):
        raise RequestError(f"{setting} {shown_value(value)}: expected a list of texts, one for each image")
    texts = list(value)
    if not texts or images not in (None, len(texts)):
        expected = "at least one text" if images is None else f"a text for each of {images} images"
        raise RequestError(f"{setting}: expected {expected}, found {len(texts)}")
    distinct: dict[str, int] = {}
    token_ids = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"{setting}[{number}] {shown_value(text)}: expected a text")
        if text not in distinct:
            distinct[text] = len(distinct)
            token_ids.append(_token_ids(bundle, setting, number, text))
    return Texts(features, mask, tuple(token_ids), np.array([distinct[text] for text in texts], np.int64))


def _require_text_encoder(bundle: Bundle, setting: str, features: RequestInput) -> None:
    if "text_encoder" not in bundle.manifest.graphs:
        raise RequestError(f"{setting}: this bundle has no text encoder; give {features.name} in inputs")
    if bundle.manifest.tokenizer is None:
        raise RequestError(f"{setting}: this bundle has no tokenizer; give {features.name} in inputs")


def _token_ids(bundle: Bundle, setting: str, number: int, text: str) -> NDArray[np.int64]:
    """Those of one text; errors tell which it is."""
    try:
        return bundle.tokenizer.encode(text)
    except RequestError as error:
        raise RequestError(f"{setting}[{number}]: {error}") from None


def pad_texts(manifest: Manifest, given: dict[str, Any]) -> None:
    """Replace features of several lengths among the caller's values by padded ones and their mask.

    Raises:
        RequestError: a mask without features, or where it is made here; features of another form.
    """
    for kind, mask_kind in TEXT_SETTINGS.values():
        features, mask = manifest.input_of_kind(kind), manifest.input_of_kind(mask_kind)
        if features is None:
            continue
        if mask is not None and mask.name in given and features.name not in given:
            raise RequestError(f"{mask.name} is given without {features.name}")
        texts = _of_several_lengths(given.get(features.name))
        if texts is not None:
            if mask is None:
                raise RequestError(f"{features.name}: texts differ in length, and this bundle takes no mask")
            if mask.name in given:
                raise RequestError(f"{mask.name}: texts of different lengths get a mask of their own; leave it out")
            given[features.name], given[mask.name] = _padded_texts(features, texts)


def masks_of_ones(manifest: Manifest, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """The masks that nobody gave, of features that are there: int64 [B, Lt]."""
    masks = {}
    for kind, mask_kind in TEXT_SETTINGS.values():
        features, mask = manifest.input_of_kind(kind), manifest.input_of_kind(mask_kind)
        if features is not None and mask is not None and features.name in arrays and mask.name not in arrays:
            masks[mask.name] = np.ones(arrays[features.name].shape[:2], np.int64)
    return masks


def _of_several_lengths(value: Any) -> list[NDArray[Any]] | None:
    """The texts of a list whose texts are arrays [N, Ct] of different lengths N; None of anything else."""
    if not isinstance(value, list | tuple):
        return None
    try:
        texts = [text if isinstance(text, np.ndarray) else np.asarray(text, np.float32) for text in value]
    except Exception:  # which is refused where a tensor is expected
        return None
    ragged = len({len(text) for text in texts if text.ndim == 2}) > 1
    return texts if ragged and all(text.ndim == 2 for text in texts) else None


def _padded_texts(features: RequestInput, texts: list[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    width = features.shape[2]
    for number, text in enumerate(texts):
        if not len(text) or text.shape[1] != width or text.dtype != features.dtype:
            raise RequestError(
                f"{features.name}[{number}]: expected {features.dtype} [N, {width}], found {text.dtype} "
                f"{list(text.shape)}"
            )
    return padded(texts)
