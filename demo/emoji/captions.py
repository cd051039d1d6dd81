"""What captions say: a style, one or two things by name or by what they are like, a place, and a colour behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from nextscale.demo.emoji.icons import Emoji

COLOURS = {
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "grey": (150, 150, 150),
    "red": (214, 56, 56),
    "orange": (245, 150, 50),
    "yellow": (250, 222, 90),
    "green": (70, 165, 80),
    "mint": (184, 240, 207),
    "sky blue": (150, 212, 250),
    "blue": (52, 104, 220),
    "navy": (30, 46, 100),
    "purple": (140, 80, 190),
    "pink": (255, 182, 208),
    "brown": (130, 88, 56),
    "beige": (240, 226, 200),
}
PLAIN = "white"  # behind what no colour is said of
# Where a small thing may be, across and down, in halves of the free room from the middle.
PLACES = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the middle": (0, 0),
    "in the upper left corner": (-1, -1),
    "in the upper right corner": (1, -1),
    "in the lower left corner": (-1, 1),
    "in the lower right corner": (1, 1),
}
TEXT_LENGTH = 96  # the most token ids of a caption: its bytes and its end
LONGEST_IN_PAIR = 22  # bytes of a name that can stand beside another
RARE = 12  # a tag that so many concepts share, or fewer, can stand for one

Numbers = Iterator[float]  # in [0, 1), each used once
Item = TypeVar("Item")


def pick(numbers: Numbers, items: Sequence[Item]) -> Item:
    """One of the items, all equally likely."""
    return items[int(next(numbers) * len(items))]


def rare_tags(emoji: Sequence[Emoji]) -> list[list[str]]:
    """Each concept's tags that few share."""
    shared = Counter(tag for e in emoji for tag in e.tags)
    return [[tag for tag in e.tags if shared[tag] <= RARE] for e in emoji]


def phrase(numbers: Numbers, emoji: Emoji, rare: Sequence[str]) -> str:
    """The words for a concept: its name, its name and a tag, a rare tag alone, or two tags of which one is rare."""
    chance, first, second = next(numbers), next(numbers), next(numbers)
    if chance < 0.6 or not rare:
        return emoji.name
    tag, any_tag = (tags[int(u * len(tags))] for tags, u in ((rare, first), (emoji.tags, second)))
    if chance < 0.72:
        return emoji.name if any_tag in emoji.name else f"{any_tag} {emoji.name}"
    return tag if chance < 0.88 or tag == any_tag else f"{any_tag} {tag}"


def in_style(numbers: Numbers, word: str, words: str) -> str:
    """What is drawn, in the style of that word."""
    return pick(numbers, (f"{word} {words}", f"{word} {words}", f"a {word} {words}", f"{words}, {word} style"))


def on_colour(numbers: Numbers, colour: str) -> str:
    """The end of a caption about what is behind."""
    return pick(numbers, (f" on a {colour} background", f" on {colour}", f", {colour} background"))


def misspelt(numbers: Numbers, text: str) -> str:
    """A letter within a text lost, doubled, or swapped with the one before; texts of less than three have none."""
    if len(text) < 3:
        return text
    i = 1 + int(next(numbers) * (len(text) - 2))
    before, letter, after = text[:i], text[i], text[i + 1 :]
    return pick(numbers, (before + after, before + 2 * letter + after, before[:-1] + letter + before[-1] + after))
