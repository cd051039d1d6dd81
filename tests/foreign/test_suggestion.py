"""Which operators stand out: by hand."""

from __future__ import annotations

import math

import pytest

from nextscale.foreign.own_errors import Error
from nextscale.foreign.suggestion import most_costly, stand_out


def effects(**relative: float) -> dict[str, Error]:
    return {name: Error(value, math.inf if value == 0 else -20 * math.log10(value)) for name, value in relative.items()}


FOUR = effects(a=0.1, b=0.3, c=0.0, d=0.2)


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        ("abcd", 2, "bd"),
        ("abcd", 9, "bda"),  # c costs nothing
        ("abcd", 0, ""),
        ("acd", 1, "d"),  # b may not be chosen
        ("xy", 3, ""),  # of which nothing is known
        ("", 3, ""),
    ],
)
def test_the_most_costly_come_first(names: str, count: int, expected: str) -> None:
    assert most_costly(FOUR, list(names), count) == tuple(expected)


def test_of_those_that_cost_the_same_the_first_comes_first() -> None:
    assert most_costly(effects(b=0.1, a=0.1, c=0.2), ["b", "a", "c"], 2) == ("c", "b")


# Squares of 3, 4 and 12 are 9, 16 and 144: together 13 squared.
STANDING: dict[str, tuple[dict[str, float], str, str]] = {
    "one of three": ({"a": 3, "b": 12, "c": 4}, "abc", "b"),  # 144 of 169 is more than 0.6
    "two of four": ({"a": 3, "b": 3, "c": 1, "d": 1}, "abcd", "ab"),  # 9 of 20 is less than 0.6, 18 more
    "the largest may not be chosen": ({"a": 3, "b": 12, "c": 4}, "ac", ""),  # 25 of 169 is less than a fifth
    "nor the largest, but it is enough": ({"a": 3, "b": 4, "c": 5}, "ab", "ba"),  # 16 of 50, and 25
    "just a fifth": ({"a": 1, "b": 2}, "a", ""),  # 1 of 5 is no more than a fifth
    "a little more": ({"a": 1.01, "b": 2}, "a", "a"),
    "many alike": (dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1.0), "abcdefghijklmnopqrstuvwxyz", ""),  # 5 of 26
    "twenty-four alike": (dict.fromkeys("abcdefghijklmnopqrstuvwx", 1.0), "abcdefghijklmnopqrstuvwx", "abcde"),
    "none costs": ({"a": 0, "b": 0}, "ab", ""),
    "nothing": ({}, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDING)
def test_the_fewest_that_stand_out(name: str) -> None:
    relative, names, expected = STANDING[name]
    assert stand_out(effects(**relative), list(names)) == tuple(expected)


def test_what_costs_everything_stands_out() -> None:
    """An output that is no longer finite: no finite effect is anything beside it."""
    known = {**effects(a=0.1), "b": Error(math.inf, -math.inf)}
    assert most_costly(known, ["a", "b"], 1) == ("b",)
    assert stand_out(known, ["a", "b"]) == ("b",)
