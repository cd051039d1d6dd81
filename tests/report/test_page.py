from __future__ import annotations

import pytest

from nextscale.report._page import element, json_line, page, text

UNTRUSTED = "<b>\x1b[2J\x00\x7f\u202e"


def test_text_has_neither_markup_nor_control_characters() -> None:
    assert text(UNTRUSTED) == r"&lt;b&gt;\x1b[2J\x00\x7f\u202e"


@pytest.mark.parametrize(
    "html",
    [
        element("p", text(UNTRUSTED), title=UNTRUSTED),
        page(UNTRUSTED, [text(UNTRUSTED)]),
        text(json_line({UNTRUSTED: [UNTRUSTED]})),
    ],
    ids=["element", "page", "json"],
)
def test_nothing_lets_them_through(html: str) -> None:
    assert html.replace("\n", "").isprintable()
    assert "<b>" not in html
