"""Files of class names, in the forms that people have of ImageNet's: JSON, Python literals and lines."""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NoReturn

from nextscale.models._class_table import Columns, columns_of
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import MAX_CLASS_NAME, MAX_CLASS_NAMES
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text, shown_value

CLASS_NAMES_LIMIT = 2 * 2**20  # bytes; a list of 21,841 classes has 1.3 MB
_MOST_VALUES = 2 * MAX_CLASS_NAMES  # of a Python literal, whose parser takes a kilobyte for each
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_WORDNET_ID = re.compile(r"n\d{8}")
# A literal may be wrapped in these, which are not called.
_DICTIONARIES = frozenset({"OrderedDict", "dict"})
_SEQUENCES = frozenset({"list", "tuple"})
_BEGIN = r"[\[{(]|(?:\w+\.)?(?:OrderedDict|dict|list|tuple)\("
# `name = [`, `name: type = dict(` and `var name = {`, as in a program from which the literal was copied.
_ASSIGNMENT = re.compile(rf"\s*(?:(?:var|let|const)\s+)?[A-Za-z_]\w*\s*(?::[^=\n]*)?=\s*(?={_BEGIN})")
_PREAMBLE = re.compile(r"\s*(?:#.*|//.*|(?:from\s+[\w.]+\s+)?import\s.*)?")
_WORDNET_LINE = re.compile(r"(n\d{8})[\s,:]+(\S.*)")
# ImageNet's map_clsloc.txt: n02119789 1 kit_fox
_NUMBERED_WORDNET_LINE = re.compile(r"(n\d{8})\s+(\d{1,9})\s+(\S.*)")
_ID_LINE = re.compile(r"(\d{1,9})(?:\s*[,:;=]\s*|\s+)(\S.*)")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>(?:\\.|(?P=quote){2}|(?!(?P=quote))[^\\])*)(?P=quote)\s*,?""")
_DELIMITERS = ",;\t|"
# Keys of the object or list that has the names, as in a model's configuration.
_WRAPPING = ("id2label", "labels", "names", "classes", "class_names", "categories")
_SHOWN = 5
_FORMS = (
    "one class name per line, or a list of names, or an object with the ids as keys, in JSON or as Python writes them"
)


def read_class_names(path: Path | None) -> list[str] | None:
    """Names in the order of the class ids.

    Args:
        path: a file of one of these forms; None: no names.
            Lines: of names, each perhaps after its WordNet id, or each after its class id; or CSV with a header.
            JSON, JSON lines or a Python literal: a list of names, of [WordNet id, name, ...] or of objects with an id
            and a name; an object {0: names}, its keys numbers or their digits; {WordNet id: name}, in the order of
            these ids; {name: 0}; and what has one of these as "id2label", "labels" or the like.
            Class ids are 0 to N - 1, or 1 to N.
    Raises:
        NextscaleError: the file cannot be read, is of another form, lacks an id or has one twice, has WordNet ids in
            another order than ImageNet's, or has a name that is empty, too long or not printable.
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
        literal = _without_preamble(text)
        names = self._of_value(self._value(literal)) if re.match(_BEGIN, literal) else self._of_lines(text)
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
        except UnicodeDecodeError as error:
            line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
            self._refuse(f"not UTF-8 text: line {line} has the byte 0x{byte:02x}, perhaps of Latin-1; save it as UTF-8")

    def _value(self, text: str) -> Any:
        """The value that the text writes; an object is a list of its pairs, of which one key may be there twice."""
        try:
            return json.loads(text, object_pairs_hook=_Pairs)
        except RecursionError:
            self._refuse("neither a JSON document nor a Python literal (nested too deeply)")
        except ValueError as error:
            if (values := _json_lines(text)) is not None:
                return values
            reason = str(error)
        if text.count(",") > _MOST_VALUES:
            self._refuse(f"over {_MOST_VALUES} values; expected at most {MAX_CLASS_NAMES} names")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes in names
                return _unwrapped(ast.parse(text.rstrip().rstrip(";"), mode="eval").body)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            self._refuse(f"neither a JSON document ({reason}) nor a Python literal")

    def _of_value(self, value: Any) -> list[str]:
        if isinstance(value, _Pairs):
            value = self._inner(value)
        if isinstance(value, _Pairs):
            return self._of_pairs(value)
        if not isinstance(value, list):
            self._refuse(f"{shown_value(value)} is no list of names; expected {_FORMS}")
        if value and all(isinstance(entry, _Pairs) for entry in value):
            return self._of_objects(value)
        self._require_sorted(_wordnet_ids(value))
        return [self._name(entry, f"entry {place}") for place, entry in enumerate(value)]

    def _inner(self, pairs: _Pairs) -> Any:
        """What an object has as "id2label", or as the only one of such names; or else the object itself."""
        inner = {key: item for key, item in pairs if isinstance(key, str) and isinstance(item, list)}
        found = [name for name in _WRAPPING if name in inner]
        if len(found) > 1 and found[0] != "id2label":
            self._refuse(f"several lists of names, {' and '.join(found)}; keep one of them")
        return inner[found[0]] if found else pairs

    def _of_objects(self, entries: Sequence[_Pairs]) -> list[str]:
        """Of [{"id": 0, "name": name}]."""
        header = [key for key, _ in entries[0]]
        columns = columns_of([str(key) for key in header])
        if columns is None:
            self._refuse(f"entry 0 has {shown_value(header)}: expected a name, and perhaps an id")
        rows = []
        for place, entry in enumerate(entries):
            values = {str(key): value for key, value in entry}
            if any(str(key) not in values for key in header):
                self._refuse(f"entry {place} is {shown_value(values)}: expected {shown_value(header)}")
            rows.append([values[str(key)] for key in header])
        return self._of_rows(columns, rows, "entry")

    def _of_rows(self, columns: Columns, rows: Sequence[Sequence[Any]], what: str) -> list[str]:
        """Of a table, in the order of its ids, or else as it is."""
        names = [self._name(row[columns.name], f"{what} {place}") for place, row in enumerate(rows)]
        wordnet_ids = [] if columns.wordnet_id is None else [row[columns.wordnet_id] for row in rows]
        wordnet_ids = wordnet_ids if _are_wordnet_ids(wordnet_ids) else []  # a synset may be written in another way
        ids = [] if columns.label is None else [row[columns.label] for row in rows]
        if not ids or _are_wordnet_ids(ids):
            self._require_sorted(ids or wordnet_ids)
            return names
        for place, key in enumerate(ids):
            if not _is_id(key):
                self._refuse(f"{what} {place} has {shown_value(key)} for its class id; expected a number")
        return self._by_id([(int(key), name) for key, name in zip(ids, names, strict=True)], wordnet_ids)

    def _of_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[str]:
        keys = [key for key, _ in pairs]
        if keys and _are_wordnet_ids(keys):
            self._refuse_repeated(keys)
            return [self._name(entry, f"entry {key}") for key, entry in sorted(pairs, key=lambda pair: pair[0])]
        if keys and all(isinstance(key, str) and _is_id(label) and not _is_id(key) for key, label in pairs):
            return self._by_id([(int(label), str(key)) for key, label in pairs])
        for key in keys:
            if not _is_id(key):
                self._refuse(f"the key {shown_value(key)} is no class id; expected {_FORMS}")
        found = [(int(key), self._name(entry, f"entry {key}")) for key, entry in pairs]
        return self._by_id(found, _wordnet_ids([entry for _, entry in pairs]))

    def _name(self, entry: Any, where: str) -> str:
        """A name, or the synonyms in a list, which a WordNet id may precede."""
        words = list(entry) if isinstance(entry, list | tuple) else [entry]
        if _begins_with_wordnet_id(words):
            del words[0]
        if not words or not all(isinstance(word, str) for word in words):
            self._refuse(f"{where} is {shown_value(entry)}: expected a name, or a WordNet id and names")
        return ", ".join(words)

    def _of_lines(self, text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        if (table := self._of_table(lines)) is not None:
            return table
        numbered = [match.groups() for line in lines if (match := _NUMBERED_WORDNET_LINE.fullmatch(line))]
        if len(numbered) == len(lines) > 1 and _are_all_ids([int(number) for _, number, _ in numbered]):
            found = [(int(number), name.replace("_", " ")) for _, number, name in numbered]
            return self._by_id(found, [wordnet_id for wordnet_id, _, _ in numbered])
        with_ids = [_ID_LINE.fullmatch(line) for line in lines]
        # A number that no class can have begins a name, such as 8 ball.
        likely = sum(match is not None and int(match[1]) <= len(lines) for match in with_ids)
        if likely > len(lines) / 2 and len(lines) > 1:
            for line, match in zip(lines, with_ids, strict=True):
                if match is None:
                    self._refuse(f'the line "{shown_text(line)}" begins with no class id, though most lines do')
            found = [(int(match[1]), _unquoted(match[2])) for match in with_ids if match is not None]
            wordnet_ids = [match[1] for _, name in found if (match := _WORDNET_LINE.fullmatch(name))]
            return self._by_id([(label, _without_wordnet_id(name)) for label, name in found], wordnet_ids)
        self._require_sorted([match[1] for line in lines if (match := _WORDNET_LINE.fullmatch(line))])
        return [_unquoted(_without_wordnet_id(line)) for line in lines]

    def _of_table(self, lines: Sequence[str]) -> list[str] | None:
        """Of CSV, if the first line is a header."""
        for delimiter in _DELIMITERS:
            header = lines[0].split(delimiter) if lines else []
            columns = columns_of(header)
            if columns is not None and (columns.label is not None or columns.wordnet_id is not None):
                return self._of_rows(columns, self._rows(lines, delimiter, len(header)), "row")
        return None

    def _rows(self, lines: Sequence[str], delimiter: str, width: int) -> list[list[str]]:
        """Of CSV, below its header."""
        try:
            rows = list(csv.reader(lines[1:], delimiter=delimiter, skipinitialspace=True, strict=True))
        except csv.Error as error:
            self._refuse(f'the lines below "{shown_text(lines[0])}" are no table ({error})')
        for row, line in zip(rows, lines[1:], strict=False):
            if len(row) != width or len(rows) < len(lines) - 1:
                self._refuse(
                    f'the line "{shown_text(line)}" has {len(row)} values, expected {width} as in '
                    f'"{shown_text(lines[0])}"; put names with commas in quotes'
                )
        return rows

    def _by_id(self, found: Sequence[tuple[int, str]], wordnet_ids: Sequence[str] = ()) -> list[str]:
        """The names of the ids 0 to N - 1, or 1 to N.

        ImageNet's development kit counts from 1, in another order than that of the WordNet ids, which models learn: so
        where both are there and disagree, ids that begin at 1 are refused.
        """
        self._refuse_repeated([label for label, _ in found])
        names = dict(found)
        first = 1 if min(names, default=0) == 1 else 0
        labels = range(first, first + len(names))
        missing = [label for label in labels if label not in names]
        if missing:
            self._refuse(f"of the class ids {labels[0]} to {labels[-1]}, {_listed(missing)} missing")
        ordered = [names[label] for label in labels]
        if first == 1 and len(wordnet_ids) == len(found):
            by_wordnet_id = [name for _, (_, name) in sorted(zip(wordnet_ids, found, strict=True))]
            if by_wordnet_id != ordered:
                numbered, sorted_name = shown_text(ordered[0]), shown_text(by_wordnet_id[0])
                self._refuse(
                    f"the first class is {numbered} by the numbers, {sorted_name} by the WordNet ids; leave out those "
                    "that the model does not follow"
                )
        return ordered

    def _require_sorted(self, wordnet_ids: Sequence[str]) -> None:
        """Refuse WordNet ids in another order than ImageNet's classes have: that of the model cannot be told."""
        self._refuse_repeated(wordnet_ids)
        for before, after in pairwise(wordnet_ids):
            if after < before:
                self._refuse(
                    f"its WordNet ids are not in order, as ImageNet's classes are: {after} stands below {before}; sort "
                    "it by them, or leave them out if it has the order of the model's classes"
                )

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


def _unwrapped(node: ast.AST) -> Any:
    """The value of a literal, or of one within OrderedDict(...) and the like."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return _literal(node)
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    value = _literal(node.args[0])
    if called not in (_SEQUENCES if type(value) is list and called not in _DICTIONARIES else _DICTIONARIES):
        raise ValueError("a call")
    if called in _DICTIONARIES and not isinstance(value, _Pairs):
        return _Pairs((key, entry) for key, entry in value)
    return value


def _without_preamble(text: str) -> str:
    """Without comments, imports and a name to which a literal is assigned, as they stand in programs."""
    lines = text.splitlines(keepends=True)
    begin = sum(map(len, takewhile(lambda line: _PREAMBLE.fullmatch(line.rstrip()), lines)))
    literal = text[begin:]
    return literal[match.end() :] if (match := _ASSIGNMENT.match(literal)) else literal.lstrip()


def _json_lines(text: str) -> list[Any] | None:
    """The values of lines that each are a JSON document."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        return [json.loads(line, object_pairs_hook=_Pairs) for line in lines] if len(lines) > 1 else None
    except (ValueError, RecursionError):
        return None


def _are_all_ids(numbers: Sequence[int]) -> bool:
    """Whether they are 0 to N - 1 or 1 to N, in any order."""
    first = min(numbers)
    return first in (0, 1) and sorted(numbers) == list(range(first, first + len(numbers)))


def _are_wordnet_ids(keys: Sequence[Any]) -> bool:
    return all(isinstance(key, str) and _WORDNET_ID.fullmatch(key) for key in keys)


def _begins_with_wordnet_id(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) > 1 and _are_wordnet_ids(entry[:1])


def _wordnet_ids(entries: Sequence[Any]) -> list[str]:
    return [entry[0] for entry in entries if _begins_with_wordnet_id(entry)]


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) < 10
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _without_wordnet_id(line: str) -> str:
    match = _WORDNET_LINE.fullmatch(line)
    return match[2] if match else line


def _unquoted(name: str) -> str:
    """Without a pair of quotes around all of it, and the comma that follows these in a list."""
    match = _QUOTED.fullmatch(name)
    if match is None:
        return name
    quote = match["quote"]
    return re.sub(r"\\([\\'\"])", r"\1", match["text"].replace(2 * quote, quote))


def _listed(labels: Sequence[int]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{', '.join(map(str, labels[:_SHOWN]))}{more} {'is' if len(labels) == 1 else 'are'}"
