"""Class names in each of their forms, and what is refused before a model is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale.models.sources import checkpoint_source, random_source, read_class_names, require_plain_name
from nextscale.runtime._errors import NextscaleError

NAMES = ["tench, Tinca tinca", "goldfish (not n01443537 x)", "caf\u00e9 [sign]"]
WORDNET_IDS = ["n01440764", "n01443537", "n01484850"]
PAIRS = list(zip(WORDNET_IDS, NAMES, strict=True))
FORMS = {
    "lines": "\n".join(NAMES),
    "lines of Windows with blanks": "\ufeff" + "\r\n\r\n ".join(NAMES) + "\r\n",
    "WordNet id and tab": "\n".join("\t".join(pair) for pair in PAIRS),
    "WordNet id and space": "\n".join(" ".join(pair) for pair in PAIRS),
    "list": json.dumps(NAMES),
    "object of names": json.dumps({str(label): name for label, name in enumerate(NAMES)}),
    "object in another order": json.dumps({str(label): NAMES[label] for label in (2, 0, 1)}),
    "object of pairs": json.dumps({str(label): pair for label, pair in enumerate(PAIRS)}, indent=1),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_class_names_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names"
    path.write_text(text, encoding="utf-8")
    assert read_class_names(path) == NAMES


def test_no_file_is_no_names() -> None:
    assert read_class_names(None) is None


BAD_NAMES = {
    "cut list": ('["cat", ', "not a JSON document"),
    "deep": ("[" * 100_000, "not a JSON document"),
    "list of numbers": ("[1, 2]", "expected a JSON list of strings, "),
    "object without 0": ('{"1": "cat", "2": "dog"}', "expected a JSON list of strings, "),
    "object of triples": ('{"0": ["n01440764", "tench", "fish"]}', "expected a JSON list of strings, "),
    "object of pairs of numbers": ('{"0": ["tench", 1]}', "expected a JSON list of strings, "),
    "tab": ("cat\n1\tdog", r"the name of class 1 is not printable text: '1\tdog'"),
    "escape": ("\x1b[31mcat", r"the name of class 0 is not printable text: '\x1b[31mcat'"),
    "newline in JSON": ('["a\\nb"]', r"the name of class 0 is not printable text: 'a\nb'"),
    "half a character in JSON": ('["\\ud800"]', r"the name of class 0 is not printable text: '\ud800'"),
}


@pytest.mark.parametrize(("text", "message"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_bad_class_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NextscaleError) as error:
        read_class_names(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_class_names_are_checked_before_a_model_is_made(tmp_path: Path) -> None:
    """Neither is there a checkpoint, nor is time enough for two billion random numbers."""
    path, nowhere = tmp_path / "names", tmp_path / "nowhere.pth"
    path.write_text("cat\tdog")
    with pytest.raises(NextscaleError, match="the name of class 0 is not printable"):
        checkpoint_source("mine", nowhere, nowhere, class_names=path)
    path.write_text("cat\ndog")
    with pytest.raises(NextscaleError, match="--class-names has 2 names, but the model has 1000 classes"):
        random_source("mine", "var-d30", 0, path)


@pytest.mark.parametrize("name", ["d16-int8", "Mine, caf\u00e9 (2)"])
def test_a_plain_name_names_a_bundle(name: str) -> None:
    assert require_plain_name(name) == name


@pytest.mark.parametrize("name", ["", "  ", "a\tb", "a\nb", "\x1b[31m", "\udcff", "..", "a/b", "a:b"], ids=ascii)
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(NextscaleError, match=r"cannot name a bundle: .*; give another --name"):
        require_plain_name(name)
