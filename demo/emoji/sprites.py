"""The sprites: every emoji in every style as 128 x 128 RGBA pixels, with its words, in one compressed file."""

from __future__ import annotations

import io
import os
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextscale.demo.emoji.icons import SIDE, Emoji
from nextscale.runtime._errors import NextscaleError

QUALITY = 88  # of colours; the outline is exact
SEPARATOR = "\n"
# Man, woman, adult; boy, girl, child: the last of each is of no gender.
NEUTRAL = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
# Kiss, couple with heart, people holding hands; pregnant person, person with crown, older person; squares, diamonds.
SAME = {
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    **dict.fromkeys(("1f46b", "1f46c", "1f46d"), "1f9d1-200d-1f91d-200d-1f9d1"),
    **dict.fromkeys(("1f930", "1fac3"), "1fac4"),
    **dict.fromkeys(("1f934", "1f478"), "1fac5"),
    **dict.fromkeys(("1f474", "1f475"), "1f9d3"),
    **dict.fromkeys(("25fb", "25fd", "2b1c"), "25ab"),
    **dict.fromkeys(("25fc", "25fe", "2b1b"), "25aa"),
    "1f536": "1f538",
    "1f537": "1f539",
}


@dataclass(frozen=True)
class Sprites:
    """N sprites of C concepts.

    Attributes:
        webp: N WebP files.
        style: int64 [N], indices of `styles.STYLES`.
        concept: int64 [N], indices of `emoji`.
        emoji: the C concepts.
        looks: int64 [C]: concepts that a style draws alike have one number, those of all are 0, 1, 2, ...
    """

    webp: tuple[bytes, ...]
    style: NDArray[np.int64]
    concept: NDArray[np.int64]
    emoji: tuple[Emoji, ...]
    looks: NDArray[np.int64]

    @classmethod
    def load(cls, path: Path) -> Sprites:
        """What `save` wrote.

        Raises:
            NextscaleError: there is no such file, or it has no sprites.
        """
        try:
            with np.load(path) as file:
                content = {name: file[name] for name in file.files}
            data, ends = content["webp"].tobytes(), content["ends"].tolist()
            words = (content[key].tolist() for key in ("code", "name", "tags", "group"))
            emoji = tuple(
                Emoji(code, name, tuple(tags.split(SEPARATOR)) if tags else (), group)
                for code, name, tags, group in zip(*words, strict=True)
            )
        except (OSError, EOFError, KeyError, ValueError) as error:
            raise NextscaleError(f"{path}: no sprites ({error}); make them with demo.emoji.make_data") from None
        webp = tuple(data[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True))
        return cls(webp, content["style"].astype(int), content["concept"].astype(int), emoji, content["looks"])

    def save(self, path: Path) -> None:
        """Write all of it as arrays, atomically."""
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                webp=np.frombuffer(b"".join(self.webp), np.uint8),
                ends=np.cumsum([len(one) for one in self.webp]),
                style=self.style.astype(np.uint8),
                concept=self.concept.astype(np.int16),
                looks=self.looks,
                code=[e.code for e in self.emoji],
                name=[e.name for e in self.emoji],
                tags=[SEPARATOR.join(e.tags) for e in self.emoji],
                group=np.array([e.group for e in self.emoji]),
            )
        os.replace(partial, path)

    @property
    def kin(self) -> NDArray[np.int64]:
        """Numbers of the concepts, equal for those that look alike or whose `neutral_code` is one: int64 [C]."""
        looks = [(("looks", look), c) for c, look in enumerate(self.looks.tolist())]
        codes = [(("code", neutral_code(e.code)), c) for c, e in enumerate(self.emoji)]
        return _joined([*looks, *codes], len(self.emoji))

    @property
    def kin_of_looks(self) -> NDArray[np.int64]:
        """The number in `kin` of each number in `looks`."""
        return self.kin[np.unique(self.looks, return_index=True)[1]]

    def pixels(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGBA with colours multiplied by alpha, as resampling and compositing need it: uint8 [len, 4, 128, 128]."""
        out = np.empty((len(indices), 4, SIDE, SIDE), np.uint8)

        def decode(row: int) -> None:
            rgba = np.asarray(Image.open(io.BytesIO(self.webp[indices[row]])).convert("RGBA"))
            alpha = rgba[..., 3:].astype(np.uint16)
            colours = (rgba[..., :3] * alpha + 127) // 255
            out[row] = np.concatenate((colours, alpha), axis=2).transpose(2, 0, 1)

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(indices))))
        return out


def packed(image: Image.Image) -> bytes:
    """An RGBA picture as WebP, without loss where that is the smaller file."""
    found = []
    for lossless in (False, True):
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY, alpha_quality=100, method=4, lossless=lossless)
        found.append(file.getvalue())
    return min(found, key=len)


def alike(
    pixels: Sequence[bytes], style: NDArray[np.int64], concept: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Numbers of the C = `count` concepts, equal for those whose drawings in some style are equal, pixel for pixel.

    Args:
        pixels: of the N sprites.
        style, concept: int64 [N].
    """
    return _joined(zip(zip(style.tolist(), pixels, strict=True), concept.tolist(), strict=True), count)


def unmistakable(pixels: Sequence[bytes], style: NDArray[np.int64], looks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of N drawings their style has for no other looks: bool [N].

    Args:
        pixels: of the N sprites.
        style, looks: int64 [N].
    """
    found: dict[Hashable, set[int]] = {}
    keys = list(zip(style.tolist(), pixels, strict=True))
    for key, look in zip(keys, looks.tolist(), strict=True):
        found.setdefault(key, set()).add(look)
    return np.array([len(found[key]) == 1 for key in keys])


def neutral_code(code: str) -> str:
    """An emoji's code without what its picture need not show: the gender of who is in it, the size of a square.

    "1f468-200d-1f680" is the code of any astronaut, "25ab" that of a white square.
    """
    parts = [NEUTRAL.get(part, part) for part in code.split("-")]
    found = "-".join(parts).replace("-200d-2640", "").replace("-200d-2642", "")
    return SAME.get(found, found)


def _joined(concept_of_key: Iterable[tuple[Hashable, int]], count: int) -> NDArray[np.int64]:
    """Numbers of `count` concepts, equal for those that have a key in common, directly or through others."""
    leader, first = list(range(count)), dict[Hashable, int]()

    def lead(c: int) -> int:
        while leader[c] != c:
            c = leader[c]
        return c

    for key, c in concept_of_key:
        a, b = sorted((lead(first.setdefault(key, c)), lead(c)))
        leader[b] = a
    return np.unique([lead(c) for c in range(count)], return_inverse=True)[1].astype(np.int64)
