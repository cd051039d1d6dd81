"""Classes by the names that a bundle gives them."""

import difflib
from collections.abc import Sequence

from nextscale.runtime._errors import ClassLabelError
from nextscale.runtime._wording import shown_text

_SHOWN = 8
# Comparing spellings takes a microsecond a character or so: names beyond so many characters in all, and texts longer
# than any name that a person types, are not compared.
_COMPARED, _LONGEST_COMPARED = 2**17, 100


def label_of_name(name: str, names: Sequence[str]) -> int | None:
    """The class of a name in any case; where names list synonyms separated by commas, each synonym is a name.

    Args:
        name: of one class.
        names: of all classes, in the order of their ids.
    Returns:
        the id, or None: no class has the name.
    Raises:
        ClassLabelError: several classes have the name.
    """
    wanted, folded = _folded(name), [_folded(known) for known in names]
    whole = [label for label, known in enumerate(folded) if known == wanted]
    found = whole or [label for label, known in enumerate(folded) if wanted in known and wanted in _synonyms(known)]
    if len(found) > 1:
        listed = ", ".join(f"{label} ({shown_text(names[label])})" for label in found[:_SHOWN])
        raise ClassLabelError(f'class "{shown_text(name)}" is the name of {len(found)} classes: give an id of {listed}')
    return found[0] if found else None


def nearest_names(name: str, names: Sequence[str]) -> str:
    """What an error about an unknown name suggests: names that contain the text, then those spelled most like it."""
    wanted, folded = _folded(name), [_folded(known) for known in names]
    nearest: dict[str, int] = {}
    for label, known in enumerate(folded):
        if wanted and wanted in known and len(nearest) < _SHOWN:
            for part in [part for part in _synonyms(known) if wanted in part] or [known]:
                nearest.setdefault(part, label)
    for part, label in _spelled_like(wanted, folded).items():
        nearest.setdefault(part, label)
    if not nearest:
        return "`nextscale inspect DIR --classes` lists the names"
    shown = list(nearest.items())[:_SHOWN]
    return f"nearest: {', '.join(f'{shown_text(part)} ({label})' for part, label in shown)}"


def _spelled_like(wanted: str, folded: Sequence[str]) -> dict[str, int]:
    """Up to four synonyms with at least half of their characters in common with the wanted text."""
    if len(wanted) > _LONGEST_COMPARED:
        return {}
    known: dict[str, int] = {}
    left = _COMPARED
    for label, name in enumerate(folded):
        for part in _synonyms(name):
            if len(wanted) <= 3 * len(part) and len(part) <= 3 * len(wanted):  # others have less in common
                known.setdefault(part, label)
                left -= len(part)
        if left <= 0:
            break
    return {part: known[part] for part in difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)}


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _synonyms(folded: str) -> list[str]:
    return [part.strip() for part in folded.split(",")]
