"""Files of class names, in the forms that people have of ImageNet's: JSON, Python literals and lines."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import MAX_CLASS_NAME, MAX_CLASS_NAMES
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text, shown_value

CLASS_NAMES_LIMIT = 2 * 2**20  # bytes; a list of 21,841 classes has 1.3 MB
_MOST_VALUES = 2 * MAX_CLASS_NAMES  # of a Python literal, whose parser takes a kilobyte for each
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_WORDNET_ID = re.compile(r"n\d{8}")
# `name = [` and `var name = {`, as in a program from which the literal was copied.
_ASSIGNMENT = re.compile(r"\s*(?:(?:var|let|const)\s+)?[A-Za-z_]\w*\s*=\s*(?=[\[{(])")
_WORDNET_LINE = re.compile(r"(n\d{8})[\s,:]+(\S.*)")
_ID_LINE = re.compile(r"(\d{1,9})(?:\s*[,:;=]\s*|\s+)(\S.*)")
_SHOWN = 5
_FORMS = (
    "one class name per line, or a list of names, or an object with the ids as keys, in JSON or as Python writes them"
)


def read_class_names(path: Path | None) -> list[str] | None:
    """Names in the order of the class ids.

    Args:
        path: a file of one of these forms; None: no names.
            Lines: of names, each perhaps after its WordNet id, or each after its class id.
            JSON or a Python literal: a list of names or of [WordNet id, name, ...]; an object {0: names}, its keys
            numbers or their digits; {WordNet id: name}, in the order of these ids; {name: 0}; and what has one of
            these as "id2label".
    Raises:
        NextscaleError: the file cannot be read, is of another form, lacks an id or has one twice, or has a name that is
            empty, too long or not printable.
    """
    if path is None:
        return None
    return _ClassNamesFile(path).names()


class _ClassNamesFile:
    """One file; its refusals name it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        text = self._text()
        literal = text[match.end() :] if (match := _ASSIGNMENT.match(text)) else text.lstrip()
        names = self._of_value(self._value(literal)) if literal.startswith(("[", "{", "(")) else self._of_lines(text)
        if not names:
            self._refuse(f"no names; expected {_FORMS}")
        if len(names) > MAX_CLASS_NAMES:
            self._refuse(f"{len(names)} names; expected at most {MAX_CLASS_NAMES}")
        for label, name in enumerate(names):
            if not name.strip():
                self._refuse(f"the name of class {label} is empty")
            if not name.isprintable():
                self._refuse(f"the name of class {label} is not printable text: {name!r:.80}")
            if len(name.encode()) > MAX_CLASS_NAME:
                self._refuse(f"the name of class {label} has more than {MAX_CLASS_NAME} bytes: {shown_text(name, 40)}")
        return names

    def _text(self) -> str:
        require_regular(self._path, or_open=True)
        try:
            with open(self._path, "rb") as file:
                content = file.read(CLASS_NAMES_LIMIT + 1)
        except OSError as error:
            self._refuse(f"cannot be read ({error.strerror})")
        if len(content) > CLASS_NAMES_LIMIT:
            self._refuse(f"over {CLASS_NAMES_LIMIT} bytes; expected {_FORMS}")
        try:
            return content.decode("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig")
        except UnicodeDecodeError:
            self._refuse(f"not UTF-8 text; expected {_FORMS}")

    def _value(self, text: str) -> Any:
        """The value that the text writes; an object is a list of its pairs, of which one key may be there twice."""
        try:
            return json.loads(text, object_pairs_hook=_Pairs)
        except RecursionError:
            self._refuse("neither a JSON document nor a Python literal (nested too deeply)")
        except ValueError as error:
            reason = str(error)
        if text.count(",") > _MOST_VALUES:
            self._refuse(f"over {_MOST_VALUES} values; expected at most {MAX_CLASS_NAMES} names")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes in names
                return _literal(ast.parse(text.rstrip().rstrip(";"), mode="eval").body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            self._refuse(f"neither a JSON document ({reason}) nor a Python literal")

    def _of_value(self, value: Any) -> list[str]:
        if isinstance(value, _Pairs):
            inner = [item for key, item in value if key == "id2label"]
            return self._of_pairs(inner[0] if inner and isinstance(inner[0], _Pairs) else value)
        if not isinstance(value, list):
            self._refuse(f"{shown_value(value)} is no list of names; expected {_FORMS}")
        return [self._name(entry, f"entry {place}") for place, entry in enumerate(value)]

    def _of_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[str]:
        keys = [key for key, _ in pairs]
        if keys and all(isinstance(key, str) and _WORDNET_ID.fullmatch(key) for key in keys):
            self._refuse_repeated(keys)
            return [self._name(entry, f"entry {key}") for key, entry in sorted(pairs, key=lambda pair: pair[0])]
        if keys and all(isinstance(key, str) and _is_id(label) and not _is_id(key) for key, label in pairs):
            return self._by_id([(int(label), str(key)) for key, label in pairs])
        for key in keys:
            if not _is_id(key):
                self._refuse(f"the key {shown_value(key)} is no class id; expected {_FORMS}")
        return self._by_id([(int(key), self._name(entry, f"entry {key}")) for key, entry in pairs])

    def _name(self, entry: Any, where: str) -> str:
        """A name, or the synonyms in a list, which a WordNet id may precede."""
        words = list(entry) if isinstance(entry, list | tuple) else [entry]
        if len(words) > 1 and isinstance(words[0], str) and _WORDNET_ID.fullmatch(words[0]):
            del words[0]
        if not words or not all(isinstance(word, str) for word in words):
            self._refuse(f"{where} is {shown_value(entry)}: expected a name, or a WordNet id and names")
        return ", ".join(words)

    def _of_lines(self, text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        with_ids = [_ID_LINE.fullmatch(line) for line in lines]
        if sum(match is not None for match in with_ids) > len(lines) / 2 and len(lines) > 1:
            for line, match in zip(lines, with_ids, strict=True):
                if match is None:
                    self._refuse(f'the line "{shown_text(line)}" begins with no class id, though most lines do')
            found = [(int(match[1]), _unquoted(match[2])) for match in with_ids if match is not None]
            return self._by_id([(label, _without_wordnet_id(name)) for label, name in found])
        wordnet_ids = [match[1] for line in lines if (match := _WORDNET_LINE.fullmatch(line))]
        self._refuse_repeated(wordnet_ids)
        return [_without_wordnet_id(line) for line in lines]

    def _by_id(self, found: Sequence[tuple[int, str]]) -> list[str]:
        self._refuse_repeated([label for label, _ in found])
        names = dict(found)
        missing = [label for label in range(len(names)) if label not in names]
        if missing:
            first = ": the first is 1, expected 0" if min(names) == 1 else ""
            self._refuse(f"of the class ids 0 to {len(names) - 1}, {_listed(missing)} missing{first}")
        return [names[label] for label in range(len(names))]

    def _refuse_repeated(self, keys: Sequence[object]) -> None:
        seen: set[object] = set()
        for key in keys:
            if key in seen:
                self._refuse(f"the class {key} is there twice")
            seen.add(key)

    def _refuse(self, what: str) -> NoReturn:
        raise NextscaleError(f"{self._path}: {what}")


class _Pairs(list[tuple[Any, Any]]):
    """The keys and values of an object, in the order of the file."""


def _literal(node: ast.AST) -> Any:
    """The value of a literal; a dictionary is its pairs."""
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]
        if len(keys) < len(node.keys):
            raise ValueError("a dictionary spread into another one")
        return _Pairs((ast.literal_eval(key), _literal(value)) for key, value in zip(keys, node.values, strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(element) for element in node.elts]
    return ast.literal_eval(node)


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) < 10
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _without_wordnet_id(line: str) -> str:
    match = _WORDNET_LINE.fullmatch(line)
    return match[2] if match else line


def _unquoted(name: str) -> str:
    """Without the quotes and the comma that stand around a name in a dictionary's line."""
    inner = name.rstrip(", ")
    return inner[1:-1] if len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "'\"" else name


def _listed(labels: Sequence[int]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{', '.join(map(str, labels[:_SHOWN]))}{more} {'is' if len(labels) == 1 else 'are'}"
