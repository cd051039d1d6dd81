from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._words import read_words, unknown_words, words_of

WORDS = {
    "A red Fox.": ["a", "red", "fox"],
    "three-o'clock, 3d_style": ["three", "o'clock", "3d", "style"],
    "'quoted' PIN\u0303ATA \u2014 Stra\u00dfe": ["quoted", "pi\u00f1ata", "strasse"],
    "rock\u2019n\u2019roll": ["rock\u2019n\u2019roll"],
    " ,.- ": [],
}


@pytest.mark.parametrize(("text", "words"), WORDS.items(), ids=range(len(WORDS)))
def test_words_are_runs_of_letters_and_digits(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_unknown_words_are_told_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffa\nFox\n", encoding="utf-8")
    known = read_words(tmp_path / "words.txt")
    assert known == {"a", "fox"}
    assert unknown_words(["a zorp fox", "b Zorp"], known) == ["zorp", "b"]
    assert unknown_words([], known) == []


def test_a_list_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"fox\xff")
    with pytest.raises(NextscaleError, match=r"words\.txt: no UTF-8; expected words, one a line"):
        read_words(tmp_path / "words.txt")
