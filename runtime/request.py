"""What to generate: the six inputs that every graph of a bundle shares, checked before anything runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import RequestError
from nextscale.runtime.manifest import ModelInfo
from nextscale.runtime.uniforms import uniforms as uniforms_of_seed

DEFAULT_CFG_SCALE = 4.0
DEFAULT_TOP_K = 900
DEFAULT_TOP_P = 0.96
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Request:
    """B images to generate. Fields are the graphs' inputs.

    Attributes:
        class_labels: int64 [B].
        uniforms: float32 [B, L], in [0, 1).
        forced_tokens: int64 [B, L], -1 where a token is to be sampled.
        cfg_scale: at least 0; 0 is no guidance.
        top_k: 0 (off) to V.
        top_p: 0 (off) to 1.
    """

    class_labels: NDArray[np.int64]
    uniforms: NDArray[np.float32]
    forced_tokens: NDArray[np.int64]
    cfg_scale: float
    top_k: int
    top_p: float

    @classmethod
    def create(
        cls,
        bundle: Bundle,
        class_labels: Sequence[str | SupportsIndex] | NDArray[np.integer],
        *,
        seed: int = 0,
        first_image: int = 0,
        cfg_scale: float = DEFAULT_CFG_SCALE,
        top_k: int | None = None,
        top_p: float = DEFAULT_TOP_P,
        forced_tokens: ArrayLike | None = None,
        uniforms: ArrayLike | None = None,
    ) -> "Request":
        """Check every parameter; see `Generator.generate` for what they mean.

        Raises:
            ClassLabelError: a label or name that the model does not have.
            RequestError: any other parameter that is out of range or of another shape.
        """
        model = bundle.model
        if isinstance(class_labels, str) or not hasattr(class_labels, "__iter__"):
            raise RequestError(f"class_labels {class_labels!r}: expected several, such as [{class_labels!r}]")
        labels = np.array([bundle.class_label(label) for label in class_labels], dtype=np.int64)
        if not len(labels):
            raise RequestError("class_labels is empty: expected at least one class")
        shape = (len(labels), model.num_tokens)
        if uniforms is None:
            numbers = uniforms_of_seed(_integer("seed", seed), _image_indices(first_image, len(labels)), shape[1])
        else:
            numbers = _checked_uniforms(uniforms, shape)
        return cls(
            class_labels=labels,
            uniforms=numbers,
            forced_tokens=_checked_tokens(forced_tokens, shape, model),
            cfg_scale=_number("cfg_scale", cfg_scale, math.inf),
            top_k=resolve_top_k(top_k, model),
            top_p=_number("top_p", top_p, 1.0),
        )

    def __len__(self) -> int:
        """B, the number of images."""
        return len(self.class_labels)

    def images(self, start: int, stop: int) -> "Request":
        """The same request for images start to stop - 1 alone."""
        return replace(
            self,
            class_labels=self.class_labels[start:stop],
            uniforms=self.uniforms[start:stop],
            forced_tokens=self.forced_tokens[start:stop],
        )

    def feeds(self) -> dict[str, NDArray[Any]]:
        """The graphs' inputs by name."""
        return {
            "class_labels": self.class_labels,
            "uniforms": self.uniforms,
            "forced_tokens": self.forced_tokens,
            "cfg_scale": np.array(self.cfg_scale, dtype=np.float32),
            "top_k": np.array(self.top_k, dtype=np.int64),
            "top_p": np.array(self.top_p, dtype=np.float32),
        }


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        return index(value)
    except TypeError:
        raise RequestError(f"{name} {value!r}: expected an integer") from None


def _number(name: str, value: float, maximum: float) -> float:
    limit = "a finite number of at least 0" if maximum == math.inf else f"0 to {maximum:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"{name} {value!r}: expected {limit}") from None
    if not 0 <= number <= min(maximum, _FLOAT32_MAX):  # written so that NaN is refused
        raise RequestError(f"{name} {number:g} is out of range: expected {limit}")
    return number


def resolve_top_k(top_k: int | None, model: ModelInfo) -> int:
    """The k that a request uses: None is 900, or V if smaller.

    Raises:
        RequestError: top_k is below 0 or above V.
    """
    if top_k is None:
        return min(DEFAULT_TOP_K, model.vocab_size)
    number = _integer("top_k", top_k)
    if not 0 <= number <= model.vocab_size:
        raise RequestError(
            f"top_k {number} is out of range: expected 0 (off) to {model.vocab_size}, the entries of the codebook"
        )
    return number


def _image_indices(first_image: int, count: int) -> range:
    first = _integer("first_image", first_image)
    if not 0 <= first <= 2**64 - count:
        raise RequestError(f"first_image {first} is out of range: expected 0 to 2^64 - {count}")
    return range(first, first + count)


def _checked_uniforms(values: ArrayLike, shape: tuple[int, int]) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind != "f":
        raise RequestError(f"uniforms: expected floats {list(shape)}, found {array.dtype} {list(array.shape)}")
    numbers = np.ascontiguousarray(array, dtype=np.float32)
    if not ((numbers >= 0) & (numbers < 1)).all():
        raise RequestError("uniforms: expected numbers of at least 0 and below 1 in float32")
    return numbers


def _checked_tokens(values: ArrayLike | None, shape: tuple[int, int], model: ModelInfo) -> NDArray[np.int64]:
    if values is None:
        return np.full(shape, -1, dtype=np.int64)
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise RequestError(f"forced_tokens: expected integers {list(shape)}, found {array.dtype} {list(array.shape)}")
    if array.min() < -1 or array.max() >= model.vocab_size:
        raise RequestError(
            f"forced_tokens: expected -1 (sample) to {model.vocab_size - 1}, found {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(array, dtype=np.int64)
