"""Whose drawings and words the emoji model learned from, as its credits file says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nextscale.demo.emoji.packages import FLUENT_3D, ICONS, NAMES, Package
from nextscale.demo.emoji.styles import STYLES, Style

HEAD = """\
# Credits

The emoji model learned from the drawings and words below. `python -m nextscale.demo.emoji.make_data --credits` makes
this file from the packages themselves. Drawings were rendered at 128 x 128 pixels, and in training scaled, moved,
mirrored, and set on plain backgrounds, alone or in pairs; flags and variants of skin tone were left out.

| style | drawings | by | licence | sprites |
|---|---|---|---|---|
"""
PACKAGES = "\nThe npm packages that they came from, with the SHA-256 of their archives:\n\n"
WORDS = """
Names and keywords are those of Unicode CLDR, in English, from {package}, whose licence is:

{licence}
"""


def credits(collections: dict[str, Any], fluent_3d: dict[str, Any], names_licence: str, counts: Sequence[int]) -> str:
    """The credits as Markdown.

    Args:
        collections: `collections.json` of `ICONS`.
        fluent_3d: `package.json` of `FLUENT_3D`.
        names_licence: the licence of `NAMES`.
        counts: sprites of each style.
    """
    rows = [_row(style, collections, fluent_3d, n) for style, n in zip(STYLES, counts, strict=True)]
    packages = "".join(f"- {_pinned(package)}\n" for package in (ICONS, FLUENT_3D, NAMES))
    quoted = (f"> {line}".rstrip() for line in names_licence.strip().splitlines())
    words = WORDS.format(package=NAMES, licence="\n".join(quoted))
    return HEAD + "".join(rows) + PACKAGES + packages + words


def _row(style: Style, collections: dict[str, Any], fluent_3d: dict[str, Any], count: int) -> str:
    if style.package is ICONS:
        about = collections[style.collection]
        author, licence = about["author"], about["license"]
        drawings, by = about["name"], f"[{author['name']}]({author['url']})"
        terms = f"[{licence['title']}]({licence['url']})"
    else:
        drawings, terms = "Fluent Emoji 3D", fluent_3d["license"]
        by = f"Microsoft Corporation, packed by [LobeHub]({fluent_3d['homepage']})"
    return f"| {style.word} | {drawings} | {by} | {terms} | {count:,} |\n"


def _pinned(package: Package) -> str:
    return f"{package} `{package.sha256}`"
