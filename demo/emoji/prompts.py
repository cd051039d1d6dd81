"""What the trained model is asked to draw: `prompts.json`, written once, from which every figure of it follows.

`python -m nextscale.demo.emoji.prompts --data sprites.npz` makes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from nextscale.demo.emoji.captions import COLOURS, PLAIN
from nextscale.demo.emoji.held_out import HeldOut, shuffled
from nextscale.demo.emoji.scenes import LEFT, LOWER, RIGHT, UPPER, Placed, Scene, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS

FILE = Path(__file__).with_name("prompts.json")
COUNT = 300  # of each kind
SEED = 7
# The windows of the judge in which the first and the second of two things are looked for, and where they are drawn.
SIDES = {
    "left of": (("left", LEFT), ("right", RIGHT)),
    "right of": (("right", RIGHT), ("left", LEFT)),
    "above": (("top", UPPER), ("bottom", LOWER)),
    "below": (("bottom", LOWER), ("top", UPPER)),
}


@dataclass(frozen=True)
class Prompt:
    """A request, and what its picture shall show.

    Attributes:
        kind: "seen" and "held-out": a (concept, style) pair; "colour": a held-out colour behind a concept; "two": two
            concepts that training never showed together.
        prompt: what the model is given.
        style, colour: words in it.
        objects: the concepts, and the window of the judge where each shall be.
    """

    kind: str
    prompt: str
    style: str
    colour: str
    objects: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Settings:
    """How the pictures are sampled; picture i of the seed is that of prompt i, and none is drawn twice."""

    seed: int = 0
    cfg_scale: float = 4.0
    tau: float = 0.5
    top_p: float = 0.0


def load_prompts(path: Path = FILE) -> tuple[Settings, list[Prompt]]:
    """The committed file's settings and prompts."""
    document = json.loads(path.read_text(encoding="utf-8"))
    prompts = [Prompt(**p | {"objects": tuple((a, b) for a, b in p["objects"])}) for p in document["prompts"]]
    return Settings(**document["settings"]), prompts


def choose(scenes: Scenes, count: int = COUNT, seed: int = SEED) -> list[Prompt]:
    """So many prompts of each kind; of the concepts and styles that no list names, in an order of the seed's."""
    sprites, held = scenes.sprites, scenes.held_out
    drawn = {(scenes.names[c], WORDS[s]) for c, s in zip(sprites.concept, sprites.style, strict=True)} - held.pairs
    styles_of = {name: [word for word in WORDS if (name, word) in drawn] for name in scenes.names}
    seen = [(scenes.names[sprites.concept[i]], WORDS[sprites.style[i]]) for i in scenes.train]
    seen = [seen[i] for i in shuffled(len(seen), seed, 0)[:count]]
    prompts = [_alone("seen", name, style, PLAIN) for name, style in seen]
    prompts += [_alone("held-out", name, style, PLAIN) for name, style in sorted(held.pairs)[:count]]
    for i, (name, colour) in enumerate(sorted(held.colours)[:count]):
        prompts.append(_alone("colour", name, styles_of[name][i % len(styles_of[name])], colour))
    relations, colours = list(SIDES), list(COLOURS)
    for i, (a, b) in enumerate(sorted(held.objects)):
        common = [word for word in WORDS if word in styles_of[a] and word in styles_of[b]]
        colour = colours[i % len(colours)]
        if common and not {(a, colour), (b, colour)} & held.colours:
            relation, style = relations[i % len(relations)], common[i % len(common)]
            text = f"{style} {a} {relation} {b} on a {colour} background"
            windows = (window for window, _ in SIDES[relation])
            prompts.append(Prompt("two", text, style, colour, tuple(zip((a, b), windows, strict=True))))
    return prompts


def _alone(kind: str, name: str, style: str, colour: str) -> Prompt:
    text = f"{style} {name} on a {colour} background"
    return Prompt(kind, text, style, colour, ((name, "whole"),))


def real_scene(prompt: Prompt, sprites: Sprites) -> Scene:
    """The scene that a prompt is about, of the sprites themselves: what the judge can say at best."""
    where = {window: place for pair in SIDES.values() for window, place in pair} | {"whole": (0.5, 0.5)}
    names, placed = [e.name for e in sprites.emoji], []
    for name, window in prompt.objects:
        of_style = sprites.style == WORDS.index(prompt.style)
        (sprite,) = (of_style & (sprites.concept == names.index(name))).nonzero()[0]
        placed.append(Placed(int(sprite), 0.86 if window == "whole" else 0.46, *where[window]))
    return Scene(tuple(placed), COLOURS[prompt.colour], prompt.prompt, prompt.style, prompt.colour)


@click.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FILE, show_default=True)
def main(data: Path, out: Path) -> None:
    """Choose what the trained model is asked, and write it."""
    prompts: list[dict[str, Any]] = [asdict(p) for p in choose(Scenes(Sprites.load(data), HeldOut.load()))]
    lines = ",\n".join(f"  {json.dumps(p)}" for p in prompts)
    text = f'{{\n "settings": {json.dumps(asdict(Settings()))},\n "prompts": [\n{lines}\n ]\n}}\n'
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
