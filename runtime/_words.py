"""Words of prompts that a model never saw: they are drawn like others, but nobody can say as what.

A bundle may have a list of the words that its model saw, `words.txt`. Words are runs of letters and digits, with
apostrophes inside them, whatever their case; the list has one a line.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from nextscale.runtime._bundle import WORDS_NAME, Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import read_regular

_LIMIT = 32 * 2**20  # bytes
_WORD = re.compile("[^\\W_]+(?:['\u2019][^\\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def read_words(path: Path) -> frozenset[str]:
    """The words of a file.

    Raises:
        NextscaleError: it cannot be read or is no UTF-8.
    """
    try:
        return frozenset(words_of(read_regular(path, _LIMIT, "").decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise NextscaleError(f"{path}: no UTF-8; expected words, one a line") from None


def known_words(bundle: Bundle) -> frozenset[str] | None:
    """Those that the bundle's model saw; None where it does not tell.

    Raises:
        NextscaleError: its list cannot be read.
    """
    if WORDS_NAME not in bundle.manifest.files:
        return None
    return read_words(bundle.folder / WORDS_NAME)


def unknown_words(texts: Iterable[str], known: Collection[str]) -> list[str]:
    """The words of some texts that are not known, each once, in order."""
    return [word for word in dict.fromkeys(word for text in texts for word in words_of(text)) if word not in known]
