import pytest

from nextscale.runtime._text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 模型 é", "plain, 模型 é"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202e\u2028\ud800", r"\u202e\u2028\ud800"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
