"""The seven styles in which emoji are drawn, two more for the judge, and where their drawings are."""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.demo.emoji.packages import FLUENT_3D, ICONS, Package


@dataclass(frozen=True)
class Style:
    """A set of drawings by one hand.

    Attributes:
        word: what captions call it.
        collection: its name in `ICONS`, or in the credits.
        package: where the drawings are: vector graphics in `ICONS`, pictures of 256 pixels in `FLUENT_3D`.
        chars_of: the collection of `ICONS` that says which icon is which emoji, for collections with the same icon
            names that do not; None: names alone tell.
    """

    word: str
    collection: str
    package: Package = ICONS
    chars_of: str | None = None


STYLES = (
    Style("noto", "noto", chars_of="noto"),
    Style("classic", "noto-v1"),
    Style("glossy", "fluent-emoji", chars_of="fluent-emoji-flat"),
    Style("flat", "fluent-emoji-flat", chars_of="fluent-emoji-flat"),
    Style("3d", "fluent-emoji-3d", FLUENT_3D),
    Style("twemoji", "twemoji", chars_of="twemoji"),
    Style("cartoon", "emojione"),
)
WORDS = tuple(style.word for style in STYLES)
# What the judge alone learns from, too, so that it knows a thing in whatever style. They are share-alike: no weights
# that are published have seen them.
JUDGE_STYLES = (Style("openmoji", "openmoji", chars_of="openmoji"), Style("emojione-v1", "emojione-v1"))
