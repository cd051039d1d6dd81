"""Good files made bad: whoever reads one has to refuse it in a line, or had no use for what was damaged."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def damaged(path: Path, optional: Collection[str] = ()) -> list[tuple[str, bytes]]:
    """Contents in the place of a good .npz or JSON, and what is wrong with each.

    Args:
        path: of the good file.
        optional: keys whose numbers may be NaN, and values null; of an .npz, how their names begin.
    """
    content = path.read_bytes()
    found = [("empty", b""), ("no such form", b"\xff no such form"), ("truncated", content[: len(content) // 2])]
    if path.suffix == ".json":
        found += [(what, json.dumps(document).encode()) for what, document in _documents(json.loads(content), optional)]
        return [*found, ("nested", b"[" * 100_000)]
    with np.load(path) as file:
        good = dict(file)
    for what, arrays in _arrays(good, optional):
        written = io.BytesIO()
        np.savez(written, **arrays)
        found.append((what, written.getvalue()))
    return found


def _arrays(good: Mapping[str, Any], optional: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "nothing", {"other": np.zeros(3)}
    for name, array in good.items():
        yield f"no {name}", {other: found for other, found in good.items() if other != name}
        yield f"{name} of objects", {**good, name: np.full(array.shape, None)}
        yield f"{name} of complex numbers", {**good, name: np.zeros(array.shape, complex)}
        yield f"{name} of another rank", {**good, name: array[None]}
        if array.dtype.kind == "f" and array.size and not name.startswith(tuple(optional)):
            yield f"{name} of NaN", {**good, name: np.full_like(array, np.nan)}
        if array.ndim:
            one = np.zeros_like(array, shape=(1, *array.shape[1:]))
            yield f"{name} of one more", {**good, name: np.concatenate([array, one])}


def _documents(good: Any, optional: Collection[str]) -> Iterator[tuple[str, Any]]:
    yield from (("a list", [good]), ("null", None), ("text", "text"), ("a number", 3), ("no keys", {}))
    for place in _places(good):
        *above, key = place
        node = _at(good, above)[key]
        others: list[Any] = [[node], {"a": node}, 10**400]
        if key not in optional:
            others.append(None)
        others += ["3", True] if isinstance(node, float | int) and not isinstance(node, bool) else [3]
        if isinstance(node, float) and key not in optional:
            others.append(float("nan"))
        for other in others:
            found = copy.deepcopy(good)
            _at(found, above)[key] = other
            yield f"{place}: {str(other)[:20]}", found
        if isinstance(key, str):
            found = copy.deepcopy(good)
            del _at(found, above)[key]
            yield f"no {place}", found


def _places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _at(node: Any, place: Collection[Any]) -> Any:
    for key in place:
        node = node[key]
    return node
