from __future__ import annotations

import itertools

from nextscale.demo.emoji.captions import (
    COLOURS,
    LONGEST_IN_PAIR,
    RARE,
    TEXT_LENGTH,
    in_style,
    misspelt,
    on_colour,
    phrase,
    pick,
    rare_tags,
)
from nextscale.demo.emoji.icons import Emoji
from nextscale.demo.emoji.scenes import RELATIONS
from nextscale.demo.emoji.styles import WORDS

CAT = Emoji("1f408", "cat", ("animal", "kitten"), 3)


def grid(count: int) -> itertools.product[tuple[float, ...]]:
    """Many rows of numbers in [0, 1)."""
    return itertools.product((0.0, 0.3, 0.5, 0.65, 0.8, 0.999), repeat=count)


def test_pick_takes_each_item() -> None:
    assert [pick(iter([u]), "abc") for u in (0.0, 0.34, 0.67, 0.999)] == ["a", "b", "c", "c"]


def test_tags_that_many_share_are_not_rare() -> None:
    emoji = [CAT, *(Emoji(str(i), f"beast {i}", ("animal",), 3) for i in range(RARE))]
    assert rare_tags(emoji) == [["kitten"], *[[]] * RARE]


def test_a_concept_is_named_or_told_by_a_rare_tag() -> None:
    found = {phrase(iter(u), CAT, ["kitten"]) for u in grid(3)}
    assert found == {"cat", "animal cat", "kitten cat", "kitten", "animal kitten"}
    assert {phrase(iter(u), CAT, []) for u in grid(3)} == {"cat"}
    disc = Emoji("1f534", "red disc", ("red",), 8)
    assert {phrase(iter(u), disc, ["red"]) for u in grid(3)} == {"red disc", "red"}


def test_styles_and_colours_are_said_in_several_ways() -> None:
    assert {in_style(iter(u), "flat", "cat") for u in grid(1)} == {"flat cat", "a flat cat", "cat, flat style"}
    assert {on_colour(iter(u), "red") for u in grid(1)} == {" on a red background", " on red", ", red background"}


def test_a_misspelt_word_has_a_letter_less_or_more_or_two_swapped() -> None:
    found = {misspelt(iter(u), "cat") for u in grid(2)}
    assert found == {"ct", "caat", "act"}
    assert misspelt(iter(()), "ox") == "ox"


def test_the_longest_caption_of_two_things_is_not_cut() -> None:
    style, relation, colour = (max(words, key=len) for words in (WORDS, RELATIONS, COLOURS))
    name = "n" * LONGEST_IN_PAIR
    caption = f"{name} {relation} {name}, {style} style on a {colour} background"
    assert len(caption) <= TEXT_LENGTH - 2
