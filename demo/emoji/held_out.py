"""What training never shows, so that it can be asked for: `held_out.json`, written once.

`python -m nextscale.demo.emoji.held_out --data sprites.npz` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nextscale.demo.emoji.captions import COLOURS, LONGEST_IN_PAIR, PLAIN
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.runtime._uniforms import uniforms

FILE = Path(__file__).with_name("held_out.json")
COUNT = 300  # of each kind
FEWEST_STYLES = 4  # of a concept of which one is held out
SEED = 2026


@dataclass(frozen=True)
class HeldOut:
    """Three kinds of pairs of words.

    Attributes:
        pairs: concept and style.
        colours: concept and colour behind it.
        objects: two concepts in one picture, the first in alphabetical order first.
    """

    pairs: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    colours: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    objects: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    @classmethod
    def load(cls, path: Path = FILE) -> HeldOut:
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{kind: frozenset((a, b) for a, b in pairs) for kind, pairs in document.items()})

    def sprites(self, sprites: Sprites) -> NDArray[np.bool_]:
        """Which sprites are of held-out pairs: bool [N]."""
        both = zip(sprites.concept, sprites.style, strict=True)
        return np.array([(sprites.emoji[c].name, WORDS[s]) in self.pairs for c, s in both])


def choose(sprites: Sprites, count: int = COUNT, seed: int = SEED) -> dict[str, list[tuple[str, str]]]:
    """Pairs of each kind, in alphabetical order; each concept has at most one style held out."""
    names = [e.name for e in sprites.emoji]
    styles = np.bincount(sprites.concept, minlength=len(names))
    pairs: dict[str, str] = {}
    for i in shuffled(len(sprites.style), seed, 0):
        name, style = names[sprites.concept[i]], WORDS[sprites.style[i]]
        if styles[sprites.concept[i]] >= FEWEST_STYLES and len(pairs) < count:
            pairs.setdefault(name, style)
    short = [c for c, name in enumerate(names) if styles[c] >= FEWEST_STYLES and len(name) <= LONGEST_IN_PAIR]
    first, second, third = (shuffled(len(short), seed, use) for use in (1, 2, 3))
    objects = [sorted((names[short[a]], names[short[b]])) for a, b in zip(first, second, strict=True) if a != b]
    behind = [colour for colour in COLOURS if colour != PLAIN]
    colours = [(names[short[c]], behind[i % len(behind)]) for i, c in enumerate(third)]
    return {
        "pairs": sorted(pairs.items()),
        "colours": sorted(colours[:count]),
        "objects": sorted((a, b) for a, b in objects[:count]),
    }


def shuffled(count: int, seed: int, use: int) -> Sequence[int]:
    """Indices below `count` in an order of their own for each use."""
    order: list[int] = uniforms(seed, [use], count)[0].argsort(kind="stable").tolist()
    return order


@click.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FILE, show_default=True)
def main(data: Path, out: Path) -> None:
    """Choose what training never shows, and write it."""
    kinds = choose(Sprites.load(data))
    lines = (
        f' "{kind}": [\n' + ",\n".join(f"  {json.dumps(p)}" for p in pairs) + "\n ]" for kind, pairs in kinds.items()
    )
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
