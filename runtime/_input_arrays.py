"""The arrays of a request's inputs: checked copies of what the caller gave, or made where nothing was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._checked_values import is_truth_value, require_integer
from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import ModelInfo, RequestInput
from nextscale.runtime._uniforms import SAMPLING, SMOOTHING, require_64_bits
from nextscale.runtime._uniforms import uniforms as uniforms_of_seed
from nextscale.runtime._wording import shown_number, shown_text, shown_value


@dataclass(frozen=True)
class Numbers:
    """Where uniforms come from."""

    seed: int
    first_image: int

    @classmethod
    def of(cls, seed: Any, first_image: Any) -> Numbers:
        """From two integers; None is 0."""
        values = {"seed": seed, "first_image": first_image}
        return cls(**{name: 0 if value is None else require_integer(name, value) for name, value in values.items()})

    def require_range(self, images: int) -> None:
        """Refuse a seed that is none, and images that have no number."""
        if not 0 <= self.first_image <= 2**64 - images:
            raise RequestError(
                f"first_image {shown_number(self.first_image)} is out of range: expected 0 to 2^64 - {images}"
            )
        require_64_bits("seed", self.seed)

    def uniforms(self, images: int, length: int, start: int = 0, use: int = SAMPLING) -> NDArray[np.float32]:
        """Of images start to start + images - 1 of a request: [images, length]."""
        self.require_range(start + images)
        first = self.first_image + start
        return uniforms_of_seed(self.seed, range(first, first + images), length, use)


@dataclass(frozen=True)
class Noise:
    """The numbers of more_smooth, before they are made."""

    item: RequestInput
    numbers: Numbers

    def of(self, start: int, images: int) -> NDArray[np.float32]:
        """Of images start to start + images - 1 of the request: [images, L, V]."""
        made = self.numbers.uniforms(images, self.item.row_values, start, SMOOTHING)
        return made.reshape(images, *self.item.row_shape)


def uniform_array(item: RequestInput, value: Any, images: int, numbers: Numbers) -> NDArray[np.float32]:
    """The caller's, or those of the numbers: float32 [B, ...]."""
    if value is None:
        return numbers.uniforms(images, item.row_values).reshape(images, *item.row_shape)
    return _checked_uniforms(item, value, images)


def _checked_uniforms(item: RequestInput, value: Any, images: int) -> NDArray[np.float32]:
    shape = (images, *item.row_shape)
    array = as_array(item.name, value)
    if array.shape != shape or array.dtype.kind != "f":
        raise RequestError(f"{item.name}: expected floats {list(shape)}, found {type_and_shape(array)}")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        floats = np.array(array, dtype=np.float32, order="C")
    outside = ~((floats >= 0) & (floats < 1))
    if outside.any():
        raise RequestError(
            f"{item.name}: expected numbers of at least 0 and below 1 in float32, "
            f"found {shown_number(float(array[outside][0]))}"
        )
    return floats


def smooth_array(item: RequestInput, value: Any, images: int) -> NDArray[np.float32]:
    """The caller's, or none: float32 [B, L, V] or [B, 0, V]."""
    if value is None:
        return np.zeros((images, 0, item.row_shape[-1]), np.float32)
    return _checked_uniforms(item, value, images)


def token_array(item: RequestInput, value: Any, images: int, model: ModelInfo) -> NDArray[np.int64]:
    """The caller's, or -1 everywhere: int64 [B, L, ...]."""
    shape = (images, *item.row_shape)
    if value is None:
        return np.full(shape, -1, dtype=np.int64)
    array = as_array(item.name, value)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise RequestError(f"{item.name}: expected integers {list(shape)}, found {type_and_shape(array)}")
    if array.min() < -1 or array.max() >= model.vocab_size:
        raise RequestError(
            f"{item.name}: expected -1 (sample) to {model.vocab_size - 1}, found {array.min()} to {array.max()}"
        )
    return np.array(array, dtype=np.int64, order="C")


def scalar_array(item: RequestInput, value: Any) -> NDArray[Any]:
    """One value, or one for each stage; a single one stands for all stages."""
    values = list(item.default if value is None else value if _is_list(value) else [value])
    if len(values) not in (1, item.row_values):
        more = f", or {item.row_values}: one for each stage" if item.shape else ""
        raise RequestError(f"{item.name}: expected one value{more}, found {len(values)}")
    numbers = [_scalar_value(item, number) for number in values]
    return np.full(item.row_shape, numbers if item.shape else numbers[0], dtype=item.dtype)


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _scalar_value(item: RequestInput, value: Any) -> float:
    number = require_integer(item.name, value) if item.dtype == "int64" else _float(item, value)
    if not item.allows(number):
        raise RequestError(f"{item.name} {shown_number(number)} is out of range: expected {item.limits}")
    return number


def _float(item: RequestInput, value: Any) -> float:
    """A number of any type; text is none, though Python would read it."""
    try:
        if isinstance(value, str | bytes | bytearray) or is_truth_value(value) or np.ndim(value):
            raise TypeError
        return float(value)
    except OverflowError:  # an integer beyond a double
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise RequestError(f"{item.name} {shown_value(value)}: expected {item.limits}") from None


def tensor_array(item: RequestInput, value: Any, sizes: dict[str, int]) -> NDArray[Any]:
    """A tensor of the caller's; sizes, by symbol, learns those that no input before it decided."""
    expected = [sizes.get(size, size) if isinstance(size, str) else size for size in item.shape]
    wanted = f"{item.dtype} [{', '.join(map(str, expected))}]"
    if value is None:
        raise RequestError(f"{item.name} is missing: expected {wanted}; give it in inputs")
    array = as_array(item.name, value)
    if not hasattr(value, "dtype") and array.dtype.kind in "iuf" and np.can_cast(array.dtype, item.dtype, "same_kind"):
        array = array.astype(item.dtype)  # Python's own numbers have no type to get wrong
    fits = array.dtype == item.dtype and array.ndim == len(item.shape) and array.size > 0
    for size, found in zip(item.shape, array.shape, strict=False):
        fits = fits and found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
    if not fits:
        raise RequestError(f"{item.name}: expected {wanted}, found {type_and_shape(array)}")
    return np.array(array, order="C")


def require_texts(item: RequestInput, features: NDArray[np.float32]) -> None:
    """Refuse features [B, Lt, Ct] of more tokens than the model takes, or with numbers that no mask could hide.

    Raises:
        RequestError: tells how many tokens there are, or one of the numbers.
    """
    tokens = features.shape[1]
    if item.max_tokens is not None and tokens > item.max_tokens:
        raise RequestError(
            f"{item.name}: expected texts of at most {item.max_tokens} tokens, found {tokens}: shorten them"
        )
    finite = np.isfinite(features)
    if not finite.all():
        raise RequestError(f"{item.name}: expected finite numbers, found {shown_number(float(features[~finite][0]))}")


def require_mask(item: RequestInput, mask: NDArray[np.int64]) -> None:
    """Refuse a mask [B, Lt] of other numbers, since graphs may multiply by it, or compare; and an image of no text.

    Raises:
        RequestError: names one of the numbers, or the image.
    """
    others = mask[(mask != 0) & (mask != 1)]
    if others.size:
        raise RequestError(f"{item.name}: expected 1 (text) or 0 (behind its end), found {others[0]}")
    has_text = mask.any(axis=1)
    if item.kind == "text_mask" and not has_text.all():
        raise RequestError(f"{item.name}[{has_text.argmin()}]: expected at least one 1 (text), found none")


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Any value as an array, which need not be a copy."""
    try:
        return np.asarray(value)
    except ValueError:
        raise RequestError(f"{name}: expected an array, found rows of different lengths") from None
    except Exception as error:  # whatever a foreign __array__ raises
        raise RequestError(
            f"{name}: expected an array, found {type(value).__name__}: {shown_text(str(error))}"
        ) from None


def type_and_shape(array: NDArray[Any]) -> str:
    """Such as "float32 [2, 3]"."""
    return f"{array.dtype} {list(array.shape)}"
