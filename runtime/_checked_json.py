"""A JSON document of which nothing is trusted: every read is checked, and errors name the value's full path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from nextscale.runtime._errors import NextscaleError

# Beyond this an integer is no longer exact in every language's numbers.
_LARGEST_INTEGER = 2**63 - 1
# What is computed from a number below this stays finite.
_LARGEST_NUMBER = 1e100
_SHOWN = 80


class JsonNode:
    """A value of a JSON document that knows its place.

    Args:
        value: as json.loads gives it.
        where: how errors name the document.
        path: of the value in it, such as "model.depth"; empty for the document itself.
        error: what refusals raise.
        advice: what to do where a key is missing; ends that error.
    """

    def __init__(
        self, value: Any, where: str, path: str = "", error: type[NextscaleError] = NextscaleError, advice: str = ""
    ) -> None:
        self.value, self.where, self.path = value, where, path
        self._error, self._advice = error, advice

    @classmethod
    def parse(
        cls, text: str | bytes, where: str, error: type[NextscaleError] = NextscaleError, advice: str = ""
    ) -> JsonNode:
        """The document of a text.

        Raises:
            ValueError, RecursionError: the text is no JSON, or nested too deeply.
        """
        return cls(json.loads(text), where, "", error, advice)

    def refuse(self, expected: str, found: object = ...) -> NoReturn:
        """Raise the error that every refusal of a value ends in; found is the value itself unless given."""
        value = self.value if found is ... else found
        raise self._error(f"{self.where}: {self.path or 'document'}: expected {expected}, found {shown(value)}")

    def __getitem__(self, key: str) -> JsonNode:
        """The value of a key that must be there."""
        if key not in self._object():
            raise self._error(f'{self.where}: key "{self._place(key)}" is missing{self._advice}')
        return self._child(self._object()[key], self._place(key))

    def get(self, key: str) -> JsonNode | None:
        """The value of a key that may be missing or null."""
        return None if self._object().get(key) is None else self[key]

    def items(self) -> dict[str, JsonNode]:
        """The values of an object by key."""
        return {key: self._child(value, self._place(key)) for key, value in self._object().items()}

    def elements(self) -> list[JsonNode]:
        """The values of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [self._child(value, f"{self.path}[{i}]") for i, value in enumerate(self.value)]

    def integer(self, minimum: int = 0, maximum: int = _LARGEST_INTEGER) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not minimum <= self.value <= maximum:
            limit = f"of at least {minimum}" if maximum == _LARGEST_INTEGER else f"from {minimum} to {maximum}"
            self.refuse(f"an integer {limit}")
        return self.value

    def number(self, minimum: float | None = None) -> float:
        """A finite number, below 1e100 in size."""
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        # Written so that NaN is refused.
        if not number or not abs(self.value) < _LARGEST_NUMBER or not (minimum is None or self.value >= minimum):
            self.refuse("a finite number" if minimum is None else f"a number of at least {minimum:g}")
        return float(self.value)

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.isprintable():
            self.refuse("a line of printable text")
        return self.value

    def one_of(self, words: Sequence[str]) -> str:
        word = self.text()
        if word not in words:
            self.refuse(f"one of {', '.join(words)}")
        return word

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.refuse("a JSON object")
        return self.value

    def _child(self, value: Any, path: str) -> JsonNode:
        return JsonNode(value, self.where, path, self._error, self._advice)

    def _place(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def shown(value: object) -> str:
    """A value as JSON, short enough for one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
