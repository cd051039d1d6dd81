"""ImageNet's 1000 classes by name: which of a classifier's probabilities are those of a model's class.

The names are those of ILSVRC 2012 (WordNet's lemmas), in the order of WordNet ids that classifiers and VAR use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

FILE, COUNT = "imagenet_classes.txt", 1000


@cache
def imagenet_names() -> tuple[str, ...]:
    """Names of classes 0 to 999, such as "tench, Tinca tinca"; "crane" stands there twice, bird and machine."""
    text = (files("nextscale.evaluate") / FILE).read_text(encoding="utf-8")
    return tuple(text.splitlines())


def imagenet_ids(class_names: Sequence[str] | None, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """For each class of a model, the ImageNet classes that it is: those of its name; none where there is no such name.

    A name counts if it is ImageNet's whole name, or its first part where no other class begins so.

    Args:
        class_names: of the model; None: a model of 1000 classes has ImageNet's, any other has none of them.
        num_classes: of the model.
    """
    if class_names is None:
        return tuple((i,) if num_classes == COUNT else () for i in range(num_classes))
    by_name = dict[str, list[int]]()
    by_first = dict[str, list[int]]()
    for i, name in enumerate(imagenet_names()):
        by_name.setdefault(_folded(name), []).append(i)
        by_first.setdefault(_folded(name.partition(",")[0]), []).append(i)
    known = {name: ids for name, ids in by_first.items() if len(ids) == 1} | by_name
    return tuple(tuple(known.get(_folded(name), ())) for name in class_names)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
