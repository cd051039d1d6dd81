from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nextscale.demo.emoji.captions import COLOURS, TEXT_LENGTH
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.judge import WINDOWS
from nextscale.demo.emoji.prompts import COUNT, SIDES, Prompt, choose, load_prompts, real_scene
from nextscale.demo.emoji.scenes import RELATIONS, Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS


def require_consistent(prompts: list[Prompt], held: HeldOut) -> None:
    """What each kind promises."""
    for p in prompts:
        names = [name for name, _ in p.objects]
        pairs, colours = ({(name, word) for name in names} for word in (p.style, p.colour))
        assert bool(pairs & held.pairs) == (p.kind == "held-out")
        assert bool(colours & held.colours) == (p.kind == "colour")
        assert (p.kind == "two") == (len(names) == 2 and tuple(sorted(names)) in held.objects)
        assert p.prompt.startswith(f"{p.style} {names[0]}")
        assert p.prompt.endswith(f" on a {p.colour} background")
        assert len(p.prompt) < TEXT_LENGTH
        windows = tuple(window for _, window in p.objects)
        if p.kind == "two":
            (relation,) = (r for r in SIDES if f" {r} " in p.prompt)
            assert windows == tuple(window for window, _ in SIDES[relation])
        else:
            assert windows == ("whole",)


def test_the_committed_file() -> None:
    settings, prompts = load_prompts()
    held = HeldOut.load()
    require_consistent(prompts, held)
    kinds = Counter(p.kind for p in prompts)
    assert (kinds["seen"], kinds["held-out"], kinds["colour"]) == (COUNT, COUNT, COUNT)
    assert kinds["two"] > 0.8 * COUNT
    assert len({p.prompt for p in prompts}) == len(prompts)
    assert {p.style for p in prompts} == set(WORDS)
    assert {p.colour for p in prompts if p.kind != "seen"} == set(COLOURS)
    assert settings.cfg_scale > 1


def test_what_is_chosen(sprites: Sprites) -> None:
    a, b, c, _ = (e.name for e in sprites.emoji)
    held = HeldOut(frozenset({(a, WORDS[0])}), frozenset({(b, "red"), (c, "navy")}), frozenset({tuple(sorted((a, b)))}))
    scenes = Scenes(sprites, held)
    prompts = choose(scenes, count=5)
    require_consistent(prompts, held)
    assert Counter(p.kind for p in prompts) == {"seen": 5, "held-out": 1, "colour": 2, "two": 1}
    assert prompts == choose(scenes, count=5)
    assert prompts != choose(scenes, count=5, seed=1)
    (two,) = (p for p in prompts if p.kind == "two")
    assert two.style == WORDS[3]  # the style that both have and that is not held out


@pytest.mark.parametrize("relation", SIDES)
def test_the_real_scene_of_a_prompt(relation: str, sprites: Sprites) -> None:
    names = [e.name for e in sprites.emoji]
    windows = [window for window, _ in SIDES[relation]]
    prompt = Prompt("two", "text", "flat", "navy", ((names[2], windows[0]), (names[1], windows[1])))
    scene = real_scene(prompt, sprites)
    assert scene.background == COLOURS["navy"]
    assert [sprites.concept[placed.sprite] for placed in scene.objects] == [2, 1]
    assert {WORDS[sprites.style[placed.sprite]] for placed in scene.objects} == {"flat"}
    places = [(placed.x, placed.y) for placed in scene.objects]
    assert places == list(RELATIONS[relation])
    for (x, y), window in zip(places, windows, strict=True):
        across, down, side = WINDOWS[window]
        assert np.abs(np.subtract((x, y), (across, down))).max() < 0.1 * side
