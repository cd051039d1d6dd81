"""Find a model's tensors in what a checkpoint holds, however trainers wrapped them, and check that they are weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nextscale.models.checkpoint_file import MAX_TENSORS, CheckpointError
from nextscale.runtime._text import printable

TOP = "."
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_DICTIONARIES, MAX_ENTRIES, MAX_NESTING = 20_000, 1_000_000, 32
MAX_REPEATED = 2**28  # bytes that a file's tensors may have beyond those it stores, as expanded tensors do
MAX_LISTED = 10


@dataclass(frozen=True)
class Weights:
    """Tensors of one model.

    Attributes:
        place: where they lie: the keys of the dictionaries around them and the prefix of their names, with dots
            between; "." for the top of the file.
        tensors: by the model's own names.
    """

    place: str
    tensors: dict[str, Tensor]

    def is_called(self, name: str) -> tuple[bool, bool, bool]:
        """Whether name is the place, its last words, or (ema of vae_ema) a part of one of its words."""
        words, wanted = self.place.split("."), name.split(".")
        parts = {part for word in words for part in word.split("_")}
        return name == self.place, words[-len(wanted) :] == wanted, name in parts


def find_weights(content: object, anchors: Collection[str], path: Path) -> list[Weights]:
    """Each set of tensors that has more than half of the anchors among its names.

    Args:
        content: what `read_checkpoint` gave.
        anchors: names that only a model of this family has together.
        path: how errors name the file.
    Raises:
        CheckpointError: dictionaries nested too deeply or too many entries, or two tensors of one name.
    """
    found = []
    for keys, tensors in _dictionaries(content, path):
        named = _without_wrappers(tensors)
        roots = Counter(name.removesuffix(anchor) for name in named for anchor in anchors if _ends(name, anchor))
        kept = [root for root, number in roots.items() if number > len(anchors) / 2]
        for root in kept:
            deeper = tuple(other for other in kept if other != root and other.startswith(root))
            words = [key for key in (*keys, *root.split(".")) if key and key not in WRAPPERS]
            own = {n.removeprefix(root): t for n, t in named.items() if n.startswith(root) and not n.startswith(deeper)}
            for name, alike in own.items():
                if len(alike) > 1:
                    raise CheckpointError(f"{path}: {' and '.join(alike)} are both {name}; keep one of them")
            found.append(Weights(".".join(words) or TOP, {n: tensors[alike[0]] for n, alike in own.items()}))
    return found


def choose_weights(found: Sequence[Weights], name: str | None, path: Path, option: str) -> Weights:
    """The one set of weights, or the one that `name` names.

    Args:
        found: at least one.
        name: a place, its last words, or a part of one of its words.
        path, option: how errors name the file and what chooses.
    Raises:
        CheckpointError: there are several and no name, or the name is that of none or of several.
    """
    if name is None:
        chosen = list(found)
    else:
        called = [weights.is_called(name) for weights in found]
        exactness = next((i for i in range(3) if any(call[i] for call in called)), 0)
        chosen = [weights for weights, call in zip(found, called, strict=True) if call[exactness]]
    if len(chosen) == 1:
        return chosen[0]
    places = listed([weights.place for weights in found])
    if name is None:
        raise CheckpointError(f"{path} holds {len(found)} sets of weights: {places}; choose one with {option}")
    raise CheckpointError(
        f"{path}: {option} {name} is the name of {len(chosen) or 'none'} of its sets of weights: {places}"
    )


def tensor_names(content: object, path: Path) -> list[str]:
    """The names of all tensors, as they are in the file."""
    return [".".join((*keys, name)) for keys, tensors in _dictionaries(content, path) for name in tensors]


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


def listed(names: Sequence[str]) -> str:
    """Names in a message, and how many more there are."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(printable, names[:MAX_LISTED])) + more


def dtype_name(tensor: Tensor) -> str:
    """Such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _dictionaries(content: object, path: Path) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The keys that lead to each dictionary, and the tensors that lie in it."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    dictionaries = entries = tensors = 0
    while waiting:
        keys, value = waiting.pop()
        if not isinstance(value, Mapping):
            continue
        named = {str(name): entry for name, entry in value.items() if isinstance(entry, Tensor)}
        dictionaries, entries, tensors = dictionaries + 1, entries + len(value), tensors + len(named)
        if tensors > MAX_TENSORS or dictionaries > MAX_DICTIONARIES or entries > MAX_ENTRIES or len(keys) > MAX_NESTING:
            raise CheckpointError(
                f"{path} holds more than {MAX_TENSORS} tensors, {MAX_DICTIONARIES} dictionaries or {MAX_ENTRIES} "
                f"entries, or more than {MAX_NESTING} dictionaries within each other; save its state dict alone"
            )
        yield keys, named
        inner = [((*keys, str(name)), entry) for name, entry in value.items() if isinstance(entry, Mapping)]
        waiting += reversed(inner)


def _without_wrappers(names: Collection[str]) -> dict[str, list[str]]:
    """The names by what they are without wrappers' words."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(".".join(word for word in name.split(".") if word not in WRAPPERS), []).append(name)
    return found


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
