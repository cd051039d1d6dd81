from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.demo.emoji.icons import (
    NAMES_FILE,
    SIDE,
    Emoji,
    drawn,
    icon_name,
    icons_of,
    plain_code,
    plain_text,
    read_collections,
    read_emoji,
    svg,
)
from nextscale.demo.emoji.styles import Style

Archive = Callable[[dict[str, object]], Path]

RECORDS = [
    {
        "hexcode": "1F45E",
        "label": "man\u2019s shoe",
        "tags": ["Shoe", "shoe", "man\u2019s shoe"],
        "group": 7,
        "order": 2,
    },
    {"hexcode": "2764-FE0F", "label": "red heart", "group": 0, "order": 1},
    {"hexcode": "1F1E6", "label": "regional indicator A"},
    {"hexcode": "1F3FB", "label": "light skin tone", "group": 2, "order": 3},
    {"hexcode": "1F1E6-1F1E8", "label": "flag: Ascension Island", "group": 9, "order": 4},
]
SHOE = Emoji("1f45e", "man's shoe", ("shoe",), 7)
HEART = Emoji("2764", "red heart", (), 0)


def test_emoji_are_those_without_flags_and_skin_tones_in_order(archive: Archive) -> None:
    assert read_emoji(archive({NAMES_FILE: RECORDS})) == [HEART, SHOE]


@pytest.mark.parametrize(
    ("code", "plain"),
    [("1F468-200D-2764-FE0F-200D-1F468", "1f468-200d-2764-200d-1f468"), ("0023-FE0F-20E3", "0023-20e3")],
)
def test_codes_have_no_variation_selectors(code: str, plain: str) -> None:
    assert plain_code(code) == plain


@pytest.mark.parametrize(
    ("name", "icon"),
    [
        ("man\u2019s shoe", "mans-shoe"),
        ("piñata", "pinata"),
        ("keycap: #", "keycap-pound"),
        ("Japanese \u201chere\u201d button", "japanese-here-button"),
    ],
)
def test_names_of_icons(name: str, icon: str) -> None:
    assert icon_name(plain_text(name)) == icon


def collection(**changed: Any) -> dict[str, Any]:
    square = {"body": '<path fill="#f00" d="M0 0h16v8H0z"/>', "width": 16, "height": 8}
    return {"icons": {"heart": square}, "aliases": {"red-heart": {"parent": "heart"}}, "height": 16, **changed}


def test_an_icon_is_found_by_code_before_name_and_by_alias(archive: Archive) -> None:
    given = {"named": collection(), "coded": collection(chars={"1F45E": "heart", "2764": "missing"})}
    collections = read_collections(archive({f"json/{k}.json": v for k, v in given.items()}), {"named", "coded"})
    assert icons_of([HEART, SHOE], Style("word", "named"), collections) == {"2764": "red-heart"}
    coded = Style("word", "named", chars_of="coded")
    assert icons_of([HEART, SHOE], coded, collections) == {"2764": "red-heart", "1f45e": "heart"}


def test_an_svg_is_square_with_the_drawing_in_the_middle() -> None:
    assert 'viewBox="0 -4 16 16"' in svg(collection(), "red-heart")


def test_a_transformed_alias_is_refused() -> None:
    turned = collection(aliases={"a": {"parent": "heart", "rotate": 1}})
    with pytest.raises(ValueError, match="icon a is another one transformed"):
        svg(turned, "a")


def test_a_drawing_has_its_pixels() -> None:
    pytest.importorskip("resvg_py")
    pixels = np.asarray(drawn(svg(collection(), "heart")))
    assert pixels.shape == (SIDE, SIDE, 4)
    assert (pixels[SIDE // 4 : 3 * SIDE // 4] == (255, 0, 0, 255)).all()
    assert not pixels[: SIDE // 4].any()
    assert not pixels[3 * SIDE // 4 :].any()


def test_a_mirrored_alias_is_drawn_mirrored() -> None:
    pytest.importorskip("resvg_py")
    half = {"body": '<path fill="#f00" d="M4 0h8v16H4z"/>', "left": 4, "width": 16, "height": 16}
    mirrored = {
        "icons": {"half": half},
        "aliases": {"a": {"parent": "half", "hFlip": True}, "b": {"parent": "a", "hFlip": True}},
    }
    alpha = {name: np.asarray(drawn(svg(mirrored, name)))[..., 3] for name in ("half", "a", "b")}
    assert (alpha["half"][:, : SIDE // 2] == 255).all()
    assert not alpha["half"][:, SIDE // 2 :].any()
    np.testing.assert_array_equal(alpha["a"], alpha["half"][:, ::-1])
    np.testing.assert_array_equal(alpha["b"], alpha["half"])
