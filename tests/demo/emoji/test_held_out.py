from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from nextscale.demo.emoji.captions import COLOURS, LONGEST_IN_PAIR, PLAIN
from nextscale.demo.emoji.held_out import COUNT, FILE, HeldOut, choose
from nextscale.demo.emoji.icons import Emoji
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS


def many(concepts: int = 20, styles: int = 5) -> Sprites:
    """Every concept but the last in every style; the last in three."""
    both = [(c, s) for c in range(concepts) for s in range(3 if c == concepts - 1 else styles)]
    concept, style = (np.array(column) for column in zip(*both, strict=True))
    emoji = tuple(Emoji(str(c), f"concept {c}" + " with a long name" * (c % 2), (), 0) for c in range(concepts))
    return Sprites((b"",) * len(both), style, concept, emoji, np.arange(concepts))


def test_the_committed_file() -> None:
    kinds = json.loads(FILE.read_text())
    assert {kind: len(pairs) for kind, pairs in kinds.items()} == dict.fromkeys(("pairs", "colours", "objects"), COUNT)
    for pairs in kinds.values():
        assert pairs == sorted(pairs)
        assert len({tuple(pair) for pair in pairs}) == COUNT
    assert max(Counter(name for name, _ in kinds["pairs"]).values()) == 1
    assert {style for _, style in kinds["pairs"]} == set(WORDS)
    assert {colour for _, colour in kinds["colours"]} == set(COLOURS) - {PLAIN}
    assert all(a < b for a, b in kinds["objects"])


def test_what_is_chosen() -> None:
    sprites = many()
    kinds = choose(sprites, count=6)
    assert kinds == choose(sprites, count=6)
    assert kinds != choose(sprites, count=6, seed=1)
    assert {kind: len(pairs) for kind, pairs in kinds.items()} == {"pairs": 6, "colours": 6, "objects": 6}
    names = {e.name for e in sprites.emoji[:-1]}  # the last is drawn in three styles
    assert {name for name, _ in kinds["pairs"]} <= names
    short = {name for name in names if len(name) <= LONGEST_IN_PAIR}
    assert {name for name, _ in kinds["colours"]} | {n for pair in kinds["objects"] for n in pair} <= short


def test_which_sprites_are_held_out(tmp_path: Path) -> None:
    sprites, path = many(), tmp_path / "held_out.json"
    path.write_text(json.dumps({"pairs": [["concept 2", WORDS[1]]], "colours": [], "objects": [["a", "b"]]}))
    held = HeldOut.load(path)
    assert held.objects == {("a", "b")}
    (index,) = np.flatnonzero(held.sprites(sprites))
    assert (sprites.concept[index], sprites.style[index]) == (2, 1)
