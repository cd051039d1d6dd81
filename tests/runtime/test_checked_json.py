import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.runtime._checked_json import JsonNode
from nextscale.runtime._errors import BundleError, NextscaleError
from nextscale.runtime._file_hash import file_sha256

DOCUMENT = JsonNode(
    {"a": {"b": [1, 2.5, None, "x", True, "\x1b", -3, math.nan, 10**400]}, "n": None}, "file.json", advice="; ask"
)
B = DOCUMENT["a"]["b"].elements()


def test_values_are_read() -> None:
    assert (B[0].integer(), B[0].number(), B[1].number(), B[3].text()) == (1, 1.0, 2.5, "x")
    assert (B[6].integer(-3), B[6].number()) == (-3, -3.0)
    assert B[3].one_of(("y", "x")) == "x"
    assert list(DOCUMENT.items()) == ["a", "n"]
    assert DOCUMENT.get("n") is None
    assert DOCUMENT.get("missing") is None
    assert DOCUMENT.get("a") is not None


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: DOCUMENT["a"]["c"], 'file.json: key "a.c" is missing; ask'),
    "no object": (lambda: B[0]["x"], "file.json: a.b[0]: expected a JSON object, found 1"),
    "no object to get from": (lambda: B[0].get("x"), "file.json: a.b[0]: expected a JSON object, found 1"),
    "no list": (lambda: DOCUMENT["a"].elements(), "file.json: a: expected a list, found {"),
    "a fraction": (lambda: B[1].integer(), "file.json: a.b[1]: expected an integer of at least 0, found 2.5"),
    "a truth": (lambda: B[4].integer(), "file.json: a.b[4]: expected an integer of at least 0, found true"),
    "too small": (lambda: B[6].integer(1), "file.json: a.b[6]: expected an integer of at least 1, found -3"),
    "too large": (lambda: B[0].integer(-2, 0), "file.json: a.b[0]: expected an integer from -2 to 0, found 1"),
    "a truth as a number": (lambda: B[4].number(), "file.json: a.b[4]: expected a finite number, found true"),
    "NaN": (lambda: B[7].number(), "file.json: a.b[7]: expected a finite number, found NaN"),
    "beyond floats": (lambda: B[8].number(), "file.json: a.b[8]: expected a finite number, found 1000"),
    "below": (lambda: B[6].number(0), "file.json: a.b[6]: expected a number of at least 0, found -3"),
    "no text": (lambda: B[0].text(), "file.json: a.b[0]: expected a line of printable text, found 1"),
    "an escape": (lambda: B[5].text(), r'file.json: a.b[5]: expected a line of printable text, found "\u001b"'),
    "another word": (lambda: B[3].one_of(("y", "z")), 'file.json: a.b[3]: expected one of y, z, found "x"'),
    "the document": (lambda: DOCUMENT.refuse("less", 5), "file.json: document: expected less, found 5"),
}


@pytest.mark.parametrize(("read", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals_name_the_place(read: Callable[[], Any], message: str) -> None:
    with pytest.raises(NextscaleError) as caught:
        read()
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


def test_the_owner_chooses_the_error() -> None:
    node = JsonNode.parse('{"a": {"b": 1}}', "bundle", BundleError)["a"]
    with pytest.raises(BundleError, match=r"bundle: a\.b: expected a line of printable text, found 1"):
        node["b"].text()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000], ids=["empty", "open", "deep"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        JsonNode.parse(text, "file.json")


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one chunk
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(NextscaleError, match="nothing: cannot be read: No such file"):
        file_sha256(tmp_path / "nothing")
