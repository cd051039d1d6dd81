"""The sizes that a bundle is built for, and which of them a request means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nextscale.runtime._errors import RequestError
from nextscale.runtime._wording import shown_value

Size = tuple[int, int]
# What a size decides in shapes: tokens and stages, and height and width of the latent and of the pictures.
SIZE_SYMBOLS = ("L", "S", "h", "w", "H", "W")
AREA = re.compile(r"\d{1,6}(\.\d{1,6})?M", re.ASCII)
_RATIO = re.compile(r"(\d{1,9}):(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class SizeInfo:
    """One size that a bundle is built for. Sizes of two numbers are (height, width).

    Attributes:
        area: about how many pixels, such as "0.25M".
        ratio: of height to width, in lowest terms.
        image_size: pixels.
        latent_size: of f_hat.
        stage_sizes: tokens of each stage's token map.
    """

    area: str
    ratio: Size
    image_size: Size
    latent_size: Size
    stage_sizes: tuple[Size, ...]

    @property
    def ratio_in_words(self) -> str:
        """Width to height, as people say it: "3:4" is a portrait."""
        height, width = self.ratio
        return f"{width}:{height}"

    @property
    def megapixels(self) -> float:
        """The area as a number: "0.6M" and "0.60M" are one."""
        return float(self.area[:-1])


def choose_size(sizes: Sequence[SizeInfo], area: object, ratio: object) -> int:
    """The index of the size of that area and ratio; what is None is that of the first size.

    Args:
        sizes: at least one.
        area: such as "0.25M".
        ratio: width to height, such as "3:4".
    Raises:
        RequestError: another form, or a size that was not built; lists those that were.
    """
    first = sizes[0]
    wanted_area = first.megapixels if area is None else _read_area(area)
    wanted_ratio = first.ratio if ratio is None else _read_ratio(ratio)
    for index, size in enumerate(sizes):
        if (size.megapixels, size.ratio) == (wanted_area, wanted_ratio):
            return index
    height, width = wanted_ratio
    raise RequestError(
        f"area {wanted_area:g}M with ratio {width}:{height} is not built; this bundle has {sizes_in_words(sizes)}"
    )


def sizes_of_area(sizes: Sequence[SizeInfo], area: object) -> list[SizeInfo]:
    """Those of the area, or of the first size's if it is None.

    Raises:
        RequestError: another form, or an area that was not built.
    """
    wanted = sizes[0].megapixels if area is None else _read_area(area)
    found = [size for size in sizes if size.megapixels == wanted]
    if not found:
        raise RequestError(f"area {wanted:g}M is not built; this bundle has {sizes_in_words(sizes)}")
    return found


def nearest_ratio(sizes: Sequence[SizeInfo], size: Size) -> str:
    """The built ratio, width to height, that is nearest to that of a picture, by the quotient of the two."""
    height, width = size
    wanted = math.log(height / width)
    return min(sizes, key=lambda item: abs(math.log(item.ratio[0] / item.ratio[1]) - wanted)).ratio_in_words


def sizes_in_words(sizes: Sequence[SizeInfo]) -> str:
    """Such as "0.06M 1:1 3:4; 0.25M 1:1"."""
    by_area: dict[str, list[str]] = {}
    for size in sizes:
        by_area.setdefault(size.area, []).append(size.ratio_in_words)
    return "; ".join(f"{area} {' '.join(ratios)}" for area, ratios in by_area.items())


def _read_area(area: object) -> float:
    if not isinstance(area, str) or not AREA.fullmatch(area):
        raise RequestError(f'area {shown_value(area)}: expected megapixels such as "0.25M"')
    return float(area[:-1])


def _read_ratio(ratio: object) -> Size:
    match = _RATIO.fullmatch(ratio) if isinstance(ratio, str) else None
    width, height = map(int, match.groups()) if match else (0, 0)
    if not width or not height:
        raise RequestError(f'ratio {shown_value(ratio)}: expected width to height such as "3:4"')
    common = math.gcd(width, height)
    return height // common, width // common
