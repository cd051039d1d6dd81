from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nextscale.demo.emoji.captions import COLOURS, PLACES, TEXT_LENGTH
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.scenes import RELATIONS, SHADE, Placed, Scene, SceneBatches, Scenes, batch_of, token_ids
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS

MANY = 2000


@pytest.fixture(scope="module")
def drawn(scenes: Scenes) -> list[Scene]:
    return scenes.scenes(3, 0, MANY)


def test_a_scene_depends_on_seed_and_number_alone(scenes: Scenes, drawn: list[Scene]) -> None:
    assert [scenes.scene(3, n) for n in (5, 6)] == drawn[5:7]
    assert scenes.scenes(4, 0, 10) != drawn[:10]


def test_what_is_held_out_is_never_drawn(sprites: Sprites) -> None:
    a, b, *_ = (e.name for e in sprites.emoji)
    held = HeldOut(frozenset({(a, WORDS[0])}), frozenset({(b, "red"), (a, "navy")}), frozenset({(a, b)}))
    for scene in Scenes(sprites, held).scenes(0, 0, MANY):
        names = [sprites.emoji[sprites.concept[placed.sprite]].name for placed in scene.objects]
        styles = {WORDS[sprites.style[placed.sprite]] for placed in scene.objects}
        assert not {(name, style) for name in names for style in styles} & held.pairs
        assert not {(name, scene.colour) for name in names} & held.colours
        assert tuple(sorted(names)) not in held.objects


def test_scenes_are_as_varied_as_they_shall_be(drawn: list[Scene], scenes: Scenes) -> None:
    """Shares within four standard errors: 0.045 of MANY even chances."""
    singles = [scene for scene in drawn if len(scene.objects) == 1]
    small = [scene for scene in singles if scene.objects[0].size < 0.6]
    assert {placed.sprite for scene in drawn for placed in scene.objects} == set(scenes.train)
    assert 1 - len(singles) / MANY == pytest.approx(0.25 * 0.75, abs=0.07)  # some pairs have long names
    assert len(small) / len(singles) == pytest.approx(0.15, abs=0.045)
    assert sum(scene.style is not None for scene in drawn) / MANY == pytest.approx(0.9, abs=0.045)
    assert {scene.colour for scene in drawn} == {None, *COLOURS}
    assert any(scene.objects[0].mirrored for scene in singles)


def test_captions_say_what_is_there(drawn: list[Scene], sprites: Sprites) -> None:
    spelt = [scene for scene in drawn if scene.style is None or scene.style in scene.caption]
    assert len(spelt) > 0.95 * MANY  # others are misspelt
    for scene in drawn:
        assert len(scene.caption) < TEXT_LENGTH
        if scene.colour:
            shade = np.subtract(scene.background, COLOURS[scene.colour])
            assert abs(shade).max() <= SHADE
        else:
            assert scene.background == COLOURS["white"]
        for placed in scene.objects:
            half = placed.size / 2
            assert half <= placed.x + 1e-6 and placed.x + half <= 1 + 1e-6  # noqa: PT018
            assert half <= placed.y + 1e-6 and placed.y + half <= 1 + 1e-6  # noqa: PT018
    pairs = [scene for scene in drawn if len(scene.objects) == 2]
    for relation in RELATIONS:
        (x1, y1), (x2, y2) = RELATIONS[relation]
        for scene in (s for s in pairs if f" {relation} " in s.caption):
            first, second = scene.objects
            assert (np.sign(x1 - x2), np.sign(y1 - y2)) in (
                (np.sign(first.x - second.x), 0),
                (0, np.sign(first.y - second.y)),
            )
    for place, (across, down) in PLACES.items():
        for scene in (s for s in drawn if s.caption.startswith("small") and s.caption.endswith(place)):
            (placed,) = scene.objects
            assert across == 0 or np.sign(placed.x - 0.5) == across
            assert down == 0 or np.sign(placed.y - 0.5) == down


def test_things_lie_within_the_picture_and_beside_each_other(drawn: list[Scene]) -> None:
    for scene in (s for s in drawn if len(s.objects) == 2):
        a, b = scene.objects
        assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 0.46 - 1e-6  # sprites are at most half as wide as the picture


def test_token_ids_are_bytes_plus_3_an_end_and_padding() -> None:
    ids = token_ids(["ab", "é", "x" * 200])
    assert ids[0, :4].tolist() == [100, 101, 1, 0]
    assert ids[1, :4].tolist() == [0xC3 + 3, 0xA9 + 3, 1, 0]
    assert ids.shape == (3, TEXT_LENGTH)
    assert ids[2, -2:].tolist() == [ord("x") + 3, 1]


def test_a_batch_has_what_the_scenes_have(sprites: Sprites) -> None:
    one = Scene((Placed(3, 0.9, 0.5, 0.4, True),), (0, 51, 255), "caption", None, "red")
    two = replace(one, objects=(Placed(0, 0.5, 0.25, 0.5), Placed(1, 0.5, 0.75, 0.5)), style="flat", colour=None)
    batch = batch_of([one, two], sprites)
    assert batch.sprites.tolist() == [[3, -1], [0, 1]]
    torch.testing.assert_close(batch.places[0, 0], torch.tensor((0.9, 0.5, 0.4, -1.0)))
    torch.testing.assert_close(batch.backgrounds[0], torch.tensor((0, 0.2, 1)))
    concepts = len(sprites.emoji)
    red, none = list(COLOURS).index("red"), len(COLOURS)
    assert batch.labels.tolist() == [[len(WORDS), red, 3, concepts], [WORDS.index("flat"), none, 0, 1]]


def test_workers_have_pictures_of_their_own(scenes: Scenes) -> None:
    alone = SceneBatches(scenes, 0, 4)[1]
    both = [SceneBatches(scenes, 0, 2, rank, 2)[1] for rank in range(2)]
    for name in vars(alone):
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in both]), getattr(alone, name))


def test_a_plain_scene_says_all_of_it(scenes: Scenes, sprites: Sprites) -> None:
    scene = scenes.plain(1, "navy")
    name, style = sprites.emoji[sprites.concept[1]].name, WORDS[sprites.style[1]]
    assert scene.caption == f"{style} {name} on a navy background"
    assert scene.background == COLOURS["navy"]
