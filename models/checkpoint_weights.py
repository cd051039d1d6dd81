"""Find a model's tensors in what a checkpoint holds, however trainers wrapped them, and check that they are weights."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nextscale.models.checkpoint_file import MAX_TENSORS, CheckpointError
from nextscale.runtime._text import printable
from nextscale.runtime._wording import shown_text

TOP = "."
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Between the parts of a word.
PART_ENDS = r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_DICTIONARIES, MAX_ENTRIES, MAX_NESTING = 20_000, 1_000_000, 32
MAX_REPEATED = 2**28  # bytes that a file's tensors may have beyond those it stores, as expanded tensors do
MAX_LISTED = 10


@dataclass(frozen=True)
class Container:
    """A dictionary or a list in a file.

    Attributes:
        keys: those of the containers around it, and its own.
        tensors: those that lie in it, by their keys.
        is_list: whether these are indices.
    """

    keys: tuple[str, ...]
    tensors: dict[str, Tensor]
    is_list: bool


@dataclass(frozen=True)
class Weights:
    """Tensors of one model.

    Attributes:
        place: where they lie: the keys of the containers around them and the prefix of their names, with dots
            between; "." for the top of the file.
        tensors: by the model's own names; None where nobody can tell which is which.
        keys: those of the container that they lie in.
        names: the model's own names to those in that container.
    """

    place: str
    tensors: dict[str, Tensor] | None
    keys: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def is_called(self, name: str) -> tuple[bool, ...]:
        """Whether name is the place; its last words; these but for case and hyphens; parts of its last word, as ema is
        of vae_ema and vaeEMA; or parts of the place."""
        words, wanted = self.place.split("."), name.split(".")
        parts, wanted_parts = [*map(parts_of, words)], [*map(parts_of, wanted)]
        named = [part for word in wanted_parts for part in word]
        return (
            name == self.place,
            bool(named) and words[-len(wanted) :] == wanted,
            bool(named) and parts[-len(wanted) :] == wanted_parts,
            _holds(parts[-1], named),
            _holds([part for word in parts for part in word], named),
        )


def find_weights(
    content: object, anchors: Collection[str], path: Path, renamed: Callable[[str], str] = str
) -> list[Weights]:
    """Each set of tensors that has more than half of the anchors among its names.

    Args:
        content: what `read_checkpoint` gave.
        anchors: names that only a model of this family has together.
        path: how errors name the file.
        renamed: the model's own name, perhaps behind a prefix, of a name that a file may have for it.
    Raises:
        CheckpointError: containers nested too deeply or too many entries, or two tensors of one name.
    """
    found = []
    for container in containers(content, path):
        named = _own_names(container.tensors, renamed)
        roots = Counter(name.removesuffix(anchor) for name in named for anchor in anchors if _ends(name, anchor))
        kept = [root for root, number in roots.items() if number > len(anchors) / 2]
        for root in kept:
            deeper = tuple(other for other in kept if other != root and other.startswith(root))
            own = {n.removeprefix(root): t for n, t in named.items() if n.startswith(root) and not n.startswith(deeper)}
            for name, alike in own.items():
                if len(alike) > 1:
                    both = " and ".join(map(printable, alike))
                    raise CheckpointError(f"{path}: {both} are both {printable(name)}; keep one of them")
            names = {name: alike[0] for name, alike in own.items()}
            tensors = {name: container.tensors[alike] for name, alike in names.items()}
            found.append(Weights(".".join((*container.keys, *root.split("."))), tensors, container.keys, names))
    return _without_wrappers_in_places(found)


def choose_weights(found: Sequence[Weights], name: str | None, path: Path, option: str) -> Weights:
    """The one set of weights, or the one that `name` names.

    Args:
        found: at least one.
        name: as `Weights.is_called` takes it; the most exact meaning counts.
        path, option: how errors name the file and what chooses.
    Raises:
        CheckpointError: there are several and no name, or the name is that of none, of several or of one without names.
    """
    chosen = list(found) if name is None else _called(found, name)
    if len(chosen) == 1 and chosen[0].tensors is not None:
        return chosen[0]
    places = listed([_described(weights) for weights in found])
    if name is None:
        example = next((weights.place for weights in found if weights.tensors is not None), TOP)
        raise CheckpointError(
            f"{path} holds {len(found)} sets of weights: {places}; choose one with {option}, such as {option} "
            + printable(shlex.quote(example))
        )
    given = f"{path}: {option} {shown_text(name) if name.strip() else shlex.quote(name)}"
    if len(chosen) == 1:
        raise CheckpointError(f"{given} is a set of weights that cannot be read; the sets are {places}")
    raise CheckpointError(f"{given} is the name of {len(chosen) or 'none'} of its sets of weights: {places}")


def tensor_names(content: object, path: Path) -> list[str]:
    """The names of all tensors, as they are in the file."""
    return [".".join((*inner.keys, name)) for inner in containers(content, path) for name in inner.tensors]


def require_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense, not in the file, or of a dtype that holds no weights.

    Raises:
        CheckpointError: naming them.
    """
    kinds = {name: kind for name, tensor in tensors.items() if (kind := _unusable(tensor)) is not None}
    if kinds:
        found = listed([f"{name} ({kind})" for name, kind in kinds.items()])
        raise CheckpointError(
            f"{path}: expected dense float32, float16, bfloat16 or float64 tensors, found {found}; convert them first"
        )


def require_stored(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse shapes that would take far more memory than the file has values; tensors that repeat some are expanded.

    Raises:
        CheckpointError: naming the largest of them.
    """
    by_storage: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    repeated = 0
    for names in by_storage.values():
        largest = max(names, key=lambda name: tensors[name].nbytes)
        stored = tensors[largest].untyped_storage().nbytes()
        repeated += max(0, sum(tensors[name].nbytes for name in names) - stored)
        if repeated > MAX_REPEATED:
            values = stored // tensors[largest].element_size()
            raise CheckpointError(
                f"{path}: {printable(largest)} has the shape {list(tensors[largest].shape)}, but only {values} values; "
                "save contiguous copies of its tensors"
            )


def as_float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A weight as float32, contiguous.

    Raises:
        CheckpointError: a value is NaN, infinite, or too large for float32.
    """
    found = tensor.float().resolve_neg().contiguous()
    if not _is_finite(found):
        if _is_finite(tensor):
            raise CheckpointError(f"{path}: {name} ({dtype_name(tensor)}) has values that overflow float32")
        raise CheckpointError(f"{path}: NaN or infinite values in {name}; the checkpoint is damaged")
    return found


def is_counter(tensor: Tensor) -> bool:
    """Whether it counts something, as `num_batches_tracked` and `n_averaged` do: one integer or bool, no weight."""
    return tensor.ndim == 0 and not tensor.is_floating_point() and not tensor.is_complex()


def joined(words: Iterable[str], without: Collection[str] = WRAPPERS) -> str:
    """A place, without the words of wrappers."""
    return ".".join(word for word in words if word and word not in without) or TOP


def listed(names: Sequence[str]) -> str:
    """Names in a message, and how many more there are."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(printable, names[:MAX_LISTED])) + more


def dtype_name(tensor: Tensor) -> str:
    """Such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def containers(content: object, path: Path) -> Iterator[Container]:
    """Each dictionary, list and tuple; a list of names and tensors in pairs is a dictionary.

    Raises:
        CheckpointError: they are nested too deeply, or too many.
    """
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    dictionaries = entries = tensors = 0
    while waiting:
        keys, value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple):
            continue
        inner = _entries(value)
        named = [(name, entry) for name, entry in inner if isinstance(entry, Tensor)]
        found = Container(keys, dict(named), isinstance(value, list | tuple))
        dictionaries, entries = dictionaries + isinstance(value, Mapping), entries + len(inner)
        tensors += len(named)
        if tensors > MAX_TENSORS or dictionaries > MAX_DICTIONARIES or entries > MAX_ENTRIES or len(keys) > MAX_NESTING:
            raise CheckpointError(
                f"{path} holds more than {MAX_TENSORS} tensors, {MAX_DICTIONARIES} dictionaries or {MAX_ENTRIES} "
                f"entries, or more than {MAX_NESTING} dictionaries or lists within each other; save its state dict "
                "alone"
            )
        if len(found.tensors) < len(named):
            twice = next(name for name, number in Counter(name for name, _ in named).items() if number > 1)
            raise CheckpointError(
                f"{path}: two tensors are called {printable('.'.join((*keys, twice)))}; keep one of them"
            )
        yield found
        waiting += [((*keys, n), entry) for n, entry in reversed(inner) if isinstance(entry, Mapping | list | tuple)]


def _entries(value: Mapping[object, object] | list[object] | tuple[object, ...]) -> list[tuple[str, object]]:
    """What a container holds, by names or indices."""
    if isinstance(value, Mapping):
        return [(str(name), entry) for name, entry in value.items()]
    pairs: list[tuple[str, object]] = [
        (entry[0], entry[1])
        for entry in value
        if isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)
        if isinstance(entry[1], Tensor)
    ]
    return pairs if pairs and len(pairs) == len(value) else [(str(i), entry) for i, entry in enumerate(value)]


def _own_names(names: Collection[str], renamed: Callable[[str], str]) -> dict[str, list[str]]:
    """The names by what they are without wrappers' words, in the model."""
    found: dict[str, list[str]] = {}
    for name in names:
        short = ".".join(word for word in name.split(".") if word not in WRAPPERS)
        found.setdefault(renamed(short), []).append(name)
    return found


def _without_wrappers_in_places(found: Sequence[Weights]) -> list[Weights]:
    """The same, with short places where these tell them apart."""
    short = [joined(weights.place.split(".")) for weights in found]
    return [
        replace(weights, place=place if short.count(place) == 1 else joined(weights.place.split("."), frozenset()))
        for weights, place in zip(found, short, strict=True)
    ]


def _called(found: Sequence[Weights], name: str) -> list[Weights]:
    """Those that are called so most exactly; one that has no names gives way to one that has."""
    called = [weights.is_called(name) for weights in found]
    exactness = next((i for i in range(len(called[0])) if any(call[i] for call in called)), 0)
    chosen = [weights for weights, call in zip(found, called, strict=True) if call[exactness]]
    return [weights for weights in chosen if weights.tensors is not None] or chosen


def _described(weights: Weights) -> str:
    if weights.tensors is None:
        return f"{weights.place} (perhaps averaged and in a form that cannot be read)"
    return f"{TOP} (the top of the file)" if weights.place == TOP else weights.place


def parts_of(word: str) -> list[str]:
    """Of vae_ema, vae-ema, vaeEMA or VAEEma: vae and ema."""
    return [part.casefold() for part in re.split(PART_ENDS, word) if part]


def _holds(parts: Sequence[str], some: Sequence[str]) -> bool:
    """Whether `some` stand in `parts`, one after the other."""
    return bool(some) and any(parts[i : i + len(some)] == some for i in range(len(parts)))


def _ends(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith(f".{anchor}")


def _unusable(tensor: Tensor) -> str | None:
    """What a tensor is that cannot be a weight."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.").replace("_", " ")
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.dtype not in DTYPES:
        return dtype_name(tensor)
    return None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or all(math.isfinite(bound) for bound in tensor.aminmax())  # NaN propagates
