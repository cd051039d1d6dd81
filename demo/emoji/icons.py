"""From packages to pictures: which emoji there are, which icon draws each, and the drawing as pixels."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nextscale.demo.emoji.packages import files, json_files
from nextscale.demo.emoji.styles import Style

SIDE = 128  # pixels of a sprite
GROUPS_LEFT_OUT = {None, 2, 9}  # of emojibase: regional letters, skin tones and hair, flags
NAMES_FILE = "en/data.json"
COLLECTIONS_FILE = "collections.json"


@dataclass(frozen=True)
class Emoji:
    """A concept: what is drawn, in whatever style.

    Attributes:
        code: its code points in hexadecimal, without variation selectors: "1f468-200d-1f680".
        name, tags: CLDR's English short name and keywords, in lower case.
        group: of emojibase.
    """

    code: str
    name: str
    tags: tuple[str, ...]
    group: int


def plain_code(code: str) -> str:
    """A code in lower case without U+FE0F, by which collections name emoji differently."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def plain_text(text: str) -> str:
    """A name or tag as captions have it: lower case, ASCII quotes, no accents."""
    text = text.translate({0x2019: "'", 0x201C: None, 0x201D: None})
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().strip()


def icon_name(name: str) -> str:
    """What collections call the icon of an emoji: "mans-shoe"."""
    spelt = plain_text(name).replace("'", "").replace("#", "pound").replace("*", "asterisk")
    return re.sub(r"[^a-z0-9]+", "-", spelt).strip("-")


def read_emoji(archive: Path) -> list[Emoji]:
    """All emoji of emojibase's archive without flags and without variants of skin tone, in Unicode's order."""
    records = json_files(archive, {NAMES_FILE})[NAMES_FILE]
    kept = sorted((r for r in records if r.get("group") not in GROUPS_LEFT_OUT), key=lambda r: r["order"])
    return [_emoji(record) for record in kept]


def _emoji(record: dict[str, Any]) -> Emoji:
    name = plain_text(record["label"])
    tags = dict.fromkeys(plain_text(tag) for tag in record.get("tags", ()))
    return Emoji(plain_code(record["hexcode"]), name, tuple(t for t in tags if t and t != name), record["group"])


def read_collections(archive: Path, names: set[str]) -> dict[str, dict[str, Any]]:
    """Some collections of icons by their names."""
    found = json_files(archive, {f"json/{name}.json" for name in names})
    return {name: found[f"json/{name}.json"] for name in names}


def icons_of(emoji: Sequence[Emoji], style: Style, collections: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The icons that draw emoji in a style of vector graphics, by the emoji's codes."""
    icons = collections[style.collection]
    known = icons["icons"].keys() | icons.get("aliases", {}).keys()
    chars = collections[style.chars_of]["chars"] if style.chars_of else {}
    by_code = {plain_code(code): name for code, name in chars.items()}
    names = {e.code: (by_code.get(e.code), icon_name(e.name)) for e in emoji}
    return {code: name for code, both in names.items() for name in reversed(both) if name in known}


def svg(icons: dict[str, Any], name: str) -> str:
    """An icon as a square SVG document, its drawing in the middle.

    Raises:
        ValueError: it is another icon, turned otherwise than left to right: none that draws an emoji is.
    """
    mirrored = False
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        if alias.keys() - {"parent", "hFlip"}:
            raise ValueError(f"icon {name} is another one transformed: {sorted(alias)}")
        mirrored ^= alias.get("hFlip", False)
        name = alias["parent"]
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    left, top, body = icon.get("left", 0), icon.get("top", 0), icon["body"]
    if mirrored:
        body = f'<g transform="matrix(-1 0 0 1 {2 * left + width} 0)">{body}</g>'
    side = max(width, height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side} {side}" '
        f'width="{SIDE}" height="{SIDE}">{body}</svg>'
    )


def drawn(document: str) -> Image.Image:
    """An SVG document as RGBA pixels."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document)))).convert("RGBA")


def pictures(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Code and RGBA picture of each emoji in the package of ready pictures."""
    for name, content in files(archive, lambda name: name.startswith("assets/") and name.endswith(".webp")):
        picture = Image.open(io.BytesIO(content)).convert("RGBA")
        yield plain_code(Path(name).stem), picture.resize((SIDE, SIDE), Image.Resampling.BOX)
