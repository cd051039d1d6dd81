import numpy as np
import pytest

from nextscale.runtime._wording import shown_number, shown_text, shown_value


class Rude:
    def __repr__(self) -> str:
        raise ValueError


class Long:
    def __repr__(self) -> str:
        return "a\x1b\n" * 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, "1.0"), (np.float32(0.5), "0.5"), (True, "True"), (np.array(3), "3"), (np.ones((2, 3)), "float64 [2, 3]"),
        ("a\x1b", r"'a\x1b'"), (b"a", "b'a'"), (None, "None"), (2**63, "9223372036854775808"),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, ...]"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_shown_value(value: object, expected: str) -> None:
    assert shown_value(value) == expected


@pytest.mark.parametrize(
    "value", [Long(), Rude(), [10**5000], "a\n" * 1000, list(range(1000))], ids=lambda value: type(value).__name__
)
def test_any_value_is_one_short_line(value: object) -> None:
    shown = shown_value(value)
    assert 0 < len(shown) < 200
    assert shown.isprintable()


def test_numbers_keep_the_digits_that_tell_them_apart() -> None:
    numbers = [1.0, np.nextafter(1.0, 2), 0.1, 1 / 3, 1e300, -2.5]
    assert [shown_number(number) for number in numbers] == [
        "1", "1.0000000000000002", "0.1", "0.33333333333333331", "1e+300", "-2.5"
    ]  # fmt: skip
    assert [shown_number(number) for number in (float("nan"), float("inf"), -(10**400))] == [
        "nan",
        "inf",
        "about -10^400",
    ]


def test_printable_escapes_and_cuts() -> None:
    assert shown_text("a\x1b\u202e\udcff") == r"a\x1b\u202e\udcff"
    assert shown_text("abcdef", 3) == "abc…"
