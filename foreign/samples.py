"""What a model is calibrated on: one array for each of its inputs, or whatever a caller's function yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._npz import read_npz
from nextscale.runtime._wording import shown_text

Arrays = Mapping[str, NDArray[Any]]
# Of random samples, what an axis of no declared size has.
OPEN_AXIS = 16
# And what integers are drawn below: ids of nearly all vocabularies, and masks.
RANDOM_INTEGERS = 2


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    Attributes:
        dtype: of its numbers.
        shape: None for an axis of any size; None for any number of axes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} {_shown(self.shape)}"

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape can be fed."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(size in (None, found) for size, found in zip(self.shape, shape, strict=True))
        )


def graph_inputs(graph: ir.Graph) -> tuple[GraphInput, ...]:
    """The inputs that have to be fed.

    Raises:
        NextscaleError: one is no tensor of numbers.
    """
    found = []
    for value in graph.inputs:
        if value.const_value is not None:  # one with a default, as old models list their weights
            continue
        if value.dtype is None or not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise NextscaleError(f"input {value.name}: {value.type}; expected a tensor of numbers")
        shape = value.shape
        sizes = None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)
        found.append(GraphInput(str(value.name), np.dtype(value.dtype.numpy()), sizes))
    return tuple(found)


@dataclass(frozen=True)
class Samples:
    """What the model is run on, one call after the other.

    Attributes:
        feeds: of each call, an array for each input.
        origin: where they come from, in words.
    """

    feeds: tuple[Arrays, ...]
    origin: str

    def first(self, count: int) -> Samples:
        """The first of them."""
        return Samples(self.feeds[:count], self.origin)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.feeds)


Given = Path | str | Arrays | Callable[[], Iterable[Arrays]]


def read_samples(given: Given, inputs: Sequence[GraphInput]) -> Samples:
    """The samples that a user gives.

    Args:
        given: an .npz with an array for each input whose first axis are samples, or a folder of such; the arrays
            themselves; or a function that yields what each call of the model is fed.
        inputs: of the graph.
    Raises:
        NextscaleError: they cannot be read, an input has no array, an array has no input, or one does not fit.
    """
    if isinstance(given, (str, Path)):
        path = Path(given)
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise NextscaleError(f"{path}: has no .npz files; expected some with an array for each input of the model")
        parts = [_of_arrays(read_npz(file), inputs, str(file)) for file in files]
        return _some([feed for part in parts for feed in part], str(path))
    if callable(given):
        feeds = list[Arrays]()
        found = given()
        if not isinstance(found, Iterable):
            raise NextscaleError(f"the function of samples gives {type(found).__name__}; expected what yields them")
        for number, feed in enumerate(found):
            _require_inputs(feed, inputs, f"sample {number}")
            feeds.append({item.name: _checked(item, feed[item.name], f"sample {number}") for item in inputs})
        return _some(feeds, "a function")
    return _some(_of_arrays(given, inputs, "samples"), "arrays")


def random_samples(inputs: Sequence[GraphInput], count: int, seed: int = 0) -> Samples:
    """Normal numbers, and zeros and ones as integers: for speed alone; what is calibrated on them is worth nothing."""
    if isinstance(count, bool) or count < 1:
        raise NextscaleError(f"{count} random samples: expected at least 1")
    rng, feeds = np.random.default_rng(seed), []
    for _ in range(count):
        feed: dict[str, NDArray[Any]] = {}
        for item in inputs:
            if item.shape is None:
                raise NextscaleError(f"input {item.name}: of any shape, for which no random samples can be drawn")
            first, *others = [*item.shape] or [None]
            shape = [] if not item.shape else [first or 1, *(size or OPEN_AXIS for size in others)]
            if item.dtype.kind == "f":
                feed[item.name] = rng.standard_normal(shape).astype(item.dtype)
            else:
                feed[item.name] = np.asarray(rng.integers(0, RANDOM_INTEGERS, shape)).astype(item.dtype)
        feeds.append(feed)
    return Samples(tuple(feeds), "random numbers")


def _some(feeds: Sequence[Arrays], origin: str) -> Samples:
    if not feeds:
        raise NextscaleError(f"{origin}: no samples; expected at least one")
    return Samples(tuple(feeds), origin)


def _require_inputs(arrays: Arrays, inputs: Sequence[GraphInput], where: str) -> None:
    if not isinstance(arrays, Mapping):
        raise NextscaleError(f"{where}: {type(arrays).__name__}; expected a dictionary of an array for each input")
    names = {item.name for item in inputs}
    for item in inputs:
        if item.name not in arrays:
            raise NextscaleError(f"{where}: no array {item.name}; the model's inputs are {', '.join(sorted(names))}")
    for name in arrays:
        if name not in names:
            raise NextscaleError(
                f"{where}: {shown_text(name)} is no input of the model; expected {', '.join(sorted(names))}"
            )


def _of_arrays(arrays: Arrays, inputs: Sequence[GraphInput], where: str) -> list[Arrays]:
    """One feed for each entry of the arrays' first axis, or for as many entries as the model takes at once."""
    _require_inputs(arrays, inputs, where)
    cut = {item.name: _cut(item, np.asarray(arrays[item.name]), where) for item in inputs}
    counts = {name: len(parts) for name, parts in cut.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise NextscaleError(f"{where}: different numbers of samples: {told}")
    return [dict(zip(cut, parts, strict=True)) for parts in zip(*cut.values(), strict=True)]


def _cut(item: GraphInput, array: NDArray[Any], where: str) -> list[NDArray[Any]]:
    """The array's samples, each as it is fed."""
    if array.ndim and item.shape is not None and array.ndim == len(item.shape) + 1:
        return [_checked(item, part, where) for part in array]
    at_once = (item.shape or (None,))[0] or 1
    if not array.ndim or len(array) % at_once:
        raise NextscaleError(
            f"{where}: {item.name}: {array.dtype} {_shown(array.shape)}; expected samples along the first axis"
            + (f", a multiple of {at_once}" if at_once > 1 else "")
        )
    return [_checked(item, array[i : i + at_once], where) for i in range(0, len(array), at_once)]


def _checked(item: GraphInput, array: Any, where: str) -> NDArray[Any]:
    """The array in the input's type, if it fits."""
    array = np.asarray(array)
    if not item.fits(array.shape) or not np.can_cast(array.dtype, item.dtype, "same_kind"):
        raise NextscaleError(f"{where}: {item.name}: {array.dtype} {_shown(array.shape)}; expected {item}")
    return array.astype(item.dtype, copy=False)


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
