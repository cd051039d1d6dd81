"""Pictures side by side: a line for each row, a column for each picture, with their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE = 128  # to which small pictures are enlarged, by whole factors
GAP, MARGIN, HEADER = 4, 92, 36
LETTERS = 12  # height of a title's letters, pixels


def picture_sheet(
    rows: Sequence[NDArray[np.uint8]], row_titles: Sequence[str], column_titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Lay the pictures out, enlarged without smoothing where they are small.

    Args:
        rows: uint8 [N, H, W, 3] each.
        row_titles: of each; lines are kept.
        column_titles: of the N pictures; of two lines, or broken between words where they are too long.
    Returns:
        uint8 [H, W, 3].
    """
    _, height, width, _ = rows[0].shape
    factor = max(1, -(-LEAST_SIDE // width))
    tall, wide = height * factor + GAP, width * factor + GAP
    canvas = Image.new("RGB", (MARGIN + wide * len(column_titles), HEADER + tall * len(rows)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(LETTERS)
    for column, title in enumerate(column_titles):
        place, broken = (MARGIN + column * wide, HEADER - GAP), _broken(draw, title, wide - GAP)
        draw.multiline_text(place, broken, fill="black", font=font, anchor="ld")
    for line, (pictures, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = HEADER + line * tall
        draw.multiline_text((4, top + tall // 2 - LETTERS), title, fill="black", font=font)
        for column, picture in enumerate(pictures):
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas.paste(Image.fromarray(large), (MARGIN + column * wide, top))
    return np.array(canvas)


def _broken(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """At most two lines of so many pixels; what does not fit ends in dots."""
    font, lines = ImageFont.load_default(LETTERS), text.split("\n") if "\n" in text else [""]
    for word in text.split() if len(lines) == 1 else ():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:2]
    if len(lines) > 2:
        kept[1] += " …"
    return "\n".join(_cut(draw, line, width) for line in kept)


def _cut(draw: ImageDraw.ImageDraw, line: str, width: int) -> str:
    font = ImageFont.load_default(LETTERS)
    if draw.textlength(line, font=font) <= width:
        return line
    while line and draw.textlength(f"{line}…", font=font) > width:
        line = line[:-1]
    return f"{line}…"
