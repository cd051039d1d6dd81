"""The list of words has those of all captions, and none that training does not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from nextscale.demo.emoji import scenes as scenes_module
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.scenes import Scenes
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.weights import TEXT
from nextscale.demo.emoji.words import caption_words, main
from nextscale.runtime._words import read_words, words_of

MANY = 4000


def test_captions_have_no_other_words(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_module, "MISSPELT", 0)
    said = {word for scene in scenes.scenes(3, 0, MANY) for word in words_of(scene.caption)}
    known = caption_words(scenes)
    assert said <= set(known)
    assert known == sorted(known)
    # Each word but those of styles that have no sprite here.
    assert set(known) - said <= {word for text in WORDS for word in words_of(text)}


def test_a_concept_that_is_never_shown_is_not_known(sprites: Sprites) -> None:
    """One whose sprites are all held out."""
    name = "plain ring"
    held = HeldOut(frozenset((name, word) for word in WORDS), frozenset(), frozenset())
    emoji = tuple(replace(e, tags=("thing",)) if e.name == name else e for e in sprites.emoji)
    known = caption_words(Scenes(replace(sprites, emoji=emoji), held))
    assert "ring" not in known
    assert {"plain", "thing", "square"} <= set(known)


def test_the_program_writes_it_beside_the_encoder(data: Path, scenes: Scenes, tmp_path: Path) -> None:
    (tmp_path / TEXT).mkdir()
    result = CliRunner().invoke(main, ["--data", str(data), "--run", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert read_words(tmp_path / TEXT / "words.txt") == set(caption_words(scenes))
