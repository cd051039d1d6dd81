"""Tables of classes, as in CSV files and lists of objects: which column has the name, the id and the WordNet id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAMES = frozenset({"name", "names", "classname", "labelname", "categoryname", "displayname", "words", "description"})
_IDS = frozenset({"id", "index", "idx", "number", "classid", "classindex", "classidx", "labelid", "categoryid"})
_WORDNET_IDS = frozenset({"wnid", "synset", "synsetid", "wordnetid"})
_NAMES_OR_IDS = frozenset({"label", "class", "category"})  # a name, unless the table has a name beside it


@dataclass(frozen=True)
class Columns:
    """Where in a row they stand; None where the table does not have them."""

    name: int
    label: int | None
    wordnet_id: int | None


def columns_of(header: Sequence[str]) -> Columns | None:
    """The columns of a table whose first row, or whose keys, these are; None if it does not look like one."""
    words = [re.sub(r"[\W_]", "", word).casefold() for word in header]
    name = _first(words, _NAMES)
    if name is None:
        name = _first(words, _NAMES_OR_IDS)
        label = _first(words, _IDS)
    else:
        label = _first(words, _IDS | _NAMES_OR_IDS)
    return None if name is None else Columns(name, label, _first(words, _WORDNET_IDS))


def _first(words: Sequence[str], kind: frozenset[str]) -> int | None:
    return next((place for place, word in enumerate(words) if word in kind), None)
