"""What a picture shows and what its caption says, as a function of a seed and the picture's number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nextscale.demo.emoji.captions import (
    COLOURS,
    LONGEST_IN_PAIR,
    PLACES,
    PLAIN,
    TEXT_LENGTH,
    Numbers,
    in_style,
    misspelt,
    on_colour,
    phrase,
    pick,
    rare_tags,
)
from nextscale.demo.emoji.held_out import HeldOut
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.runtime._tokenizer import ByteTokenizer
from nextscale.runtime._uniforms import uniforms

MOST_OBJECTS = 2
NOWHERE = (1.0, 0.5, 0.5, 1.0)  # place of a sprite that is not there
NUMBERS = 32  # random numbers of a picture, more than it takes
LARGE, SMALL, PAIRED = (0.74, 0.96), (0.38, 0.52), (0.42, 0.5)  # sides of a sprite, in those of the picture
TWO, IS_SMALL, STYLED, COLOURED, MISSPELT, MIRRORED = 0.25, 0.15, 0.9, 0.75, 0.08, 0.25
SHADE = 10  # how far a background's red, green and blue may be from the colour's
GROUPS_MIRRORED = {3, 4, 5}  # animals, food, travel
SIDED = {"left", "right", "clock", "thirty", "east", "west", "arrow", "o'clock"}  # of names that a mirror makes wrong


@dataclass(frozen=True)
class Placed:
    """A sprite in a picture.

    Attributes:
        sprite: its index.
        size: side, in the picture's.
        x, y: of its middle, in the picture's side from the upper left corner.
        mirrored: left to right.
    """

    sprite: int
    size: float
    x: float
    y: float
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """One or two sprites on a plain background.

    Attributes:
        objects: in the order in which the caption names them.
        background: red, green, blue in [0, 255].
        caption: what a user might type.
        style, colour: as the caption says, if it does.
    """

    objects: tuple[Placed, ...]
    background: tuple[float, float, float]
    caption: str
    style: str | None
    colour: str | None


class Scenes:
    """Makes scenes of the sprites that are not held out."""

    def __init__(self, sprites: Sprites, held_out: HeldOut) -> None:
        self.sprites, self.held_out = sprites, held_out
        self.names = [e.name for e in sprites.emoji]
        self.rare = rare_tags(sprites.emoji)
        self.is_held = held_out.sprites(sprites)
        self.train = np.flatnonzero(~self.is_held).tolist()
        self.held = np.flatnonzero(self.is_held).tolist()
        short = [len(name) <= LONGEST_IN_PAIR for name in self.names]
        self.pairable = [short[c] for c in sprites.concept]
        self.of_style = [
            [i for i in self.train if sprites.style[i] == s and self.pairable[i]] for s in range(len(WORDS))
        ]
        self.mirrorable = [
            e.group in GROUPS_MIRRORED and SIDED.isdisjoint(e.name.replace("-", " ").split()) for e in sprites.emoji
        ]

    def scene(self, seed: int, number: int) -> Scene:
        """Picture `number` of a run."""
        return self._scene(iter(uniforms(seed, [number], NUMBERS)[0].tolist()))

    def scenes(self, seed: int, first: int, count: int) -> list[Scene]:
        """Pictures `first` to `first + count - 1`."""
        return [self._scene(iter(row)) for row in uniforms(seed, range(first, first + count), NUMBERS).tolist()]

    def plain(self, sprite: int, colour: str = PLAIN) -> Scene:
        """A sprite alone in the middle, and a caption that says all of it."""
        word, name = WORDS[self.sprites.style[sprite]], self._name(sprite)
        return Scene(
            (Placed(sprite, 0.86, 0.5, 0.5),),
            COLOURS[colour],
            f"{word} {name} on a {colour} background",
            word,
            colour,
        )

    def _scene(self, numbers: Numbers) -> Scene:
        sprite = pick(numbers, self.train)
        style = int(self.sprites.style[sprite])
        other = self._other(numbers, sprite)
        if other is None:
            objects, words = self._alone(numbers, sprite)
        else:
            objects, words = self._together(numbers, sprite, other)
        word = WORDS[style] if next(numbers) < STYLED else None
        if word:
            words = in_style(numbers, word, words)
        colour, background = self._background(numbers, objects)
        end = on_colour(numbers, colour) if colour else ""
        if len(words + end) > TEXT_LENGTH - 2:  # room for the caption's end and a letter too many
            end, colour, background = "", None, COLOURS[PLAIN]
        words += end
        if next(numbers) < MISSPELT:
            words = misspelt(numbers, words)
        return Scene(objects, background, words, word, colour)

    def _other(self, numbers: Numbers, sprite: int) -> int | None:
        """A second sprite of the same style; None where there shall be none, or the two are held out."""
        two, other = next(numbers) < TWO, pick(numbers, self.of_style[self.sprites.style[sprite]])
        a, b = sorted((self._name(sprite), self._name(other)))
        return other if two and self.pairable[sprite] and (a, b) not in self.held_out.objects else None

    def _alone(self, numbers: Numbers, sprite: int) -> tuple[tuple[Placed, ...], str]:
        concept = self.sprites.concept[sprite]
        words = phrase(numbers, self.sprites.emoji[concept], self.rare[concept])
        small, place = next(numbers) < IS_SMALL, pick(numbers, tuple(PLACES))
        size, u, v = _between(numbers, *(SMALL if small else LARGE)), next(numbers), next(numbers)
        room = (1 - size) / 2
        x, y = (0.5 + 0.9 * room * (2 * t - 1) for t in (u, v))
        if small:
            words = f"small {words}"
            if next(numbers) < 0.6:
                words += f" {place}"
                # Most of the room to that side, or little to any.
                x, y = (
                    0.5 + room * (0.8 * side + 0.2 * (2 * t - 1)) for side, t in zip(PLACES[place], (u, v), strict=True)
                )
        mirrored = self.mirrorable[concept] and next(numbers) < MIRRORED
        return (Placed(sprite, size, x, y, mirrored),), words

    def _together(self, numbers: Numbers, sprite: int, other: int) -> tuple[tuple[Placed, ...], str]:
        first, second = self._name(sprite), self._name(other)
        relation = pick(numbers, tuple(RELATIONS))
        places = [
            (x + _between(numbers, -0.01, 0.01), y + _between(numbers, -0.01, 0.01)) for x, y in RELATIONS[relation]
        ]
        objects = tuple(
            Placed(s, _between(numbers, *PAIRED), *place) for s, place in zip((sprite, other), places, strict=True)
        )
        return objects, f"{first} {relation} {second}"

    def _background(
        self, numbers: Numbers, objects: tuple[Placed, ...]
    ) -> tuple[str | None, tuple[float, float, float]]:
        coloured, colour = next(numbers) < COLOURED, pick(numbers, tuple(COLOURS))
        held = any((self._name(placed.sprite), colour) in self.held_out.colours for placed in objects)
        if held or not coloured:
            return None, COLOURS[PLAIN]
        r, g, b = (min(255.0, max(0.0, v + _between(numbers, -SHADE, SHADE))) for v in COLOURS[colour])
        return colour, (r, g, b)

    def _name(self, sprite: int) -> str:
        return self.names[self.sprites.concept[sprite]]


LEFT, RIGHT, UPPER, LOWER = (0.26, 0.5), (0.74, 0.5), (0.5, 0.26), (0.5, 0.74)
# Where the first and the second of two things are.
RELATIONS = {
    "left of": (LEFT, RIGHT),
    "right of": (RIGHT, LEFT),
    "above": (UPPER, LOWER),
    "below": (LOWER, UPPER),
    "and": (LEFT, RIGHT),
    "next to": (LEFT, RIGHT),
}


def _between(numbers: Numbers, low: float, high: float) -> float:
    return low + (high - low) * next(numbers)


@dataclass(frozen=True)
class Batch:
    """Scenes as tensors.

    Attributes:
        sprites: int64 [B, 2], -1 where there is no second.
        places: float32 [B, 2, 4]: size, x, y, and 1 or -1, which mirrors.
        backgrounds: float32 [B, 3], in [0, 1].
        token_ids: int64 [B, TEXT_LENGTH] of the captions, 0 behind their ends.
        labels: int64 [B, 4], what a caption says: style, colour, first and second concept; one more than there are
            where it says none.
    """

    sprites: Tensor
    places: Tensor
    backgrounds: Tensor
    token_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = (t.to(device, non_blocking=True) for t in vars(self).values())
        return Batch(*moved)

    def pin_memory(self) -> Batch:
        return Batch(*(t.pin_memory() for t in vars(self).values()))


def token_ids(captions: list[str]) -> Tensor:
    """int64 [B, TEXT_LENGTH]: ByT5's ids, 0 behind a caption's end. A longer caption is cut."""
    tokenizer, ids = ByteTokenizer(TEXT_LENGTH), torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.int64)
    for row, caption in enumerate(captions):
        found = torch.from_numpy(tokenizer.encode(caption[: TEXT_LENGTH - 1]))
        ids[row, : len(found)] = found
    return ids


def batch_of(scenes: list[Scene], sprites: Sprites) -> Batch:
    """Scenes as tensors."""
    indices, places, labels, colours = [], [], [], list(COLOURS)
    for scene in scenes:
        found = [placed.sprite for placed in scene.objects]
        one_missing = len(found) < MOST_OBJECTS
        indices.append(found + [-1] * one_missing)
        places.append([(p.size, p.x, p.y, -1 if p.mirrored else 1) for p in scene.objects] + [NOWHERE] * one_missing)
        style = WORDS.index(scene.style) if scene.style else len(WORDS)
        colour = colours.index(scene.colour) if scene.colour else len(colours)
        concepts = [int(sprites.concept[i]) for i in found] + [len(sprites.emoji)] * one_missing
        labels.append([style, colour, *concepts])
    backgrounds = torch.tensor([scene.background for scene in scenes]) / 255
    ids = token_ids([scene.caption for scene in scenes])
    return Batch(torch.tensor(indices), torch.tensor(places), backgrounds, ids, torch.tensor(labels))


class SceneBatches(Dataset[Batch]):
    """The batches of a run by step, so that a run that goes on sees what it would have seen.

    Step t of worker r of R has pictures (t R + r) B to (t R + r + 1) B - 1 of the seed.
    """

    def __init__(self, scenes: Scenes, seed: int, batch: int, rank: int = 0, workers: int = 1) -> None:
        self.scenes, self.seed, self.batch, self.rank, self.workers = scenes, seed, batch, rank, workers

    def __getitem__(self, step: int) -> Batch:
        first = (step * self.workers + self.rank) * self.batch
        return batch_of(self.scenes.scenes(self.seed, first, self.batch), self.scenes.sprites)
