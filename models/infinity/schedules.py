"""The sizes of pictures that Infinity makes: each aspect ratio has a list of scales, of which an area uses the first.

The numbers are those of the official code (`utils/dynamic_resolution.py`). Ratios are [height, width] in small whole
numbers; theirs are called by h/w in three digits, such as 1.333.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from nextscale.runtime._errors import NextscaleError

Ratio = tuple[int, int]
Sides = tuple[int, int]  # height, width

# Heights and widths of the scales of pictures that are at least as high as wide.
_HEIGHTS_AND_WIDTHS: dict[Ratio, tuple[tuple[int, ...], tuple[int, ...]]] = {
    (1, 1): ((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64), (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    (5, 4): ((1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 45, 55, 70), (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 36, 44, 56)),
    (4, 3): ((1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 60, 72), (1, 2, 3, 6, 9, 12, 15, 18, 21, 27, 36, 45, 54)),
    (3, 2): ((1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78), (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52)),
    (7, 4): ((1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84), (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48)),
    (2, 1): ((1, 2, 4, 6, 10, 16, 22, 30, 38, 46, 60, 74, 90), (1, 2, 2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45)),
    (5, 2): ((1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100), (1, 2, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40)),
    (3, 1): ((1, 2, 6, 9, 15, 21, 27, 36, 45, 54, 72, 90, 111), (1, 2, 2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37)),
}
_HIGH = {ratio: tuple(zip(*sides, strict=True)) for ratio, sides in _HEIGHTS_AND_WIDTHS.items()}
SCALES: dict[Ratio, tuple[Sides, ...]] = _HIGH | {
    (w, h): tuple((width, height) for height, width in scales) for (h, w), scales in _HIGH.items()
}
# How many scales an area uses; named by pixels, 1M being 1024 x 1024.
AREAS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
STRIDE = 16  # pixels of a token's side


@dataclass(frozen=True)
class Size:
    """A size of pictures, as the manifest lists it.

    Attributes:
        area: a key of AREAS, or pixels in M for other numbers of scales.
        ratio: a key of SCALES.
        stage_sizes: height and width of each stage's map of tokens.
        latent_size: of the VAE's latent: the last stage's, or twice that where a token is a patch of 2 x 2 latents.
        image_size: height and width in pixels.
    """

    area: str
    ratio: Ratio
    stage_sizes: tuple[Sides, ...]
    latent_size: Sides
    image_size: Sides

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.stage_sizes)

    @property
    def stage_tokens(self) -> tuple[int, ...]:
        """l of each stage."""
        return tuple(height * width for height, width in self.stage_sizes)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all stages."""
        return sum(self.stage_tokens)

    @property
    def stage_begins(self) -> tuple[int, ...]:
        """Where each stage starts among the L tokens."""
        return tuple(accumulate(self.stage_tokens[:-1], initial=0))

    @property
    def patch(self) -> int:
        """The side of the patch of latents that is one token: 1, or 2 where patchified."""
        return self.latent_size[0] // self.stage_sizes[-1][0]


def make_size(area: str, ratio: Ratio, *, patchify: bool = False) -> Size:
    """The size of an area and a ratio.

    Args:
        area: a key of AREAS.
        ratio: a key of SCALES (`nearest_ratio`).
        patchify: whether a token is a patch of 2 x 2 latents, as in the 8B release; pictures are equally large.
    Raises:
        NextscaleError: there is no such area or ratio.
    """
    if area not in AREAS:
        raise NextscaleError(f"no area {area!r}: expected one of {', '.join(AREAS)}")
    return first_stages(AREAS[area], ratio, patchify=patchify)


def first_stages(num_stages: int, ratio: Ratio, *, patchify: bool = False) -> Size:
    """The size that the first scales of a ratio make, which need not be as many as an area has.

    Raises:
        NextscaleError: there is no such ratio, or it has fewer scales.
    """
    if ratio not in SCALES:
        known = ", ".join(f"{height}:{width}" for height, width in SCALES)
        raise NextscaleError(f"no ratio {ratio[0]}:{ratio[1]} of height to width: expected one of {known}")
    if not 1 <= num_stages <= len(SCALES[ratio]):
        raise NextscaleError(f"expected 1 to {len(SCALES[ratio])} stages, found {num_stages}")
    stage_sizes = SCALES[ratio][:num_stages]
    height, width = stage_sizes[-1]
    patch = 2 if patchify else 1
    pixels = (height * STRIDE, width * STRIDE)
    named = {count: area for area, count in AREAS.items()}
    area = named.get(num_stages, f"{pixels[0] * pixels[1] / 2**20:.3g}M")
    return Size(area, ratio, stage_sizes, (height * patch, width * patch), pixels)


def nearest_ratio(height: float, width: float) -> Ratio:
    """The ratio of SCALES whose h/w is nearest to height/width; of two equally near, the first.

    Raises:
        NextscaleError: a side is not positive.
    """
    if not (height > 0 and width > 0):
        raise NextscaleError(f"expected positive sides of a ratio, found {height}:{width}")
    wanted = Fraction(height) / Fraction(width)
    return min(SCALES, key=lambda ratio: abs(Fraction(*ratio) - wanted))
