from __future__ import annotations

from pathlib import Path

from nextscale.demo import emoji
from nextscale.demo.emoji.credits import credits
from nextscale.demo.emoji.packages import FLUENT_3D, ICONS, NAMES
from nextscale.demo.emoji.styles import STYLES

COMMITTED = Path(__file__).parents[3] / "demo" / "nextscale-demo" / "CREDITS.md"


def test_each_style_has_its_author_licence_and_count() -> None:
    about = {
        style.collection: {
            "name": f"Set {i}",
            "author": {"name": f"Author {i}", "url": f"https://author{i}.example"},
            "license": {"title": f"Licence {i}", "url": f"https://licence{i}.example"},
        }
        for i, style in enumerate(STYLES)
        if style.package is ICONS
    }
    package = {"license": "Licence 4", "homepage": "https://packer.example"}
    text = credits(about, package, "Licence of words\n\nTerms", [1000 + i for i in range(len(STYLES))])
    for i, style in enumerate(STYLES):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {style.word} |"))
        assert f"Licence {i}" in row
        assert row.endswith(f"| 1,00{i} |")
        assert style.package is FLUENT_3D or f"[Author {i}](https://author{i}.example)" in row
    assert "> Licence of words\n>\n> Terms" in text
    assert all(f"{package} `{package.sha256}`" in text for package in (ICONS, FLUENT_3D, NAMES))


def test_the_committed_file_is_of_the_pinned_packages() -> None:
    assert emoji.__doc__
    text = COMMITTED.read_text(encoding="utf-8")
    assert all(f"{package} `{package.sha256}`" in text for package in (ICONS, FLUENT_3D, NAMES))
    assert all(f"\n| {style.word} |" in text for style in STYLES)
