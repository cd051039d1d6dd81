"""Fig. D: photographs, masks and what each row of Table 3 makes of them, side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nextscale.paper.table_3 import Table3

LEAST_SIDE = 128  # to which small pictures are enlarged, by whole factors
GAP, MARGIN, HEADER = 4, 92, 30
GREY = 128


def sheet(table: Table3) -> NDArray[np.uint8]:
    """A line for each photograph: itself, the part that is made anew in grey, and the result of each row.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = table.model["image_size"]
    factor = max(1, -(-LEAST_SIDE // width))
    tall, wide = height * factor + GAP, width * factor + GAP
    columns = [("photograph", ""), ("mask", "")] + [_title(row.method, row.bits) for row in table.rows]
    canvas = Image.new("RGB", (MARGIN + wide * len(columns), HEADER + tall * len(table.sheet)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for column, lines in enumerate(columns):
        draw.multiline_text((MARGIN + column * wide, 2), "\n".join(lines), fill="black", font=font)
    for line, row in enumerate(table.sheet):
        top = HEADER + line * tall
        draw.text((2, top + tall // 2 - 6), row.task, fill="black", font=font)
        masked = np.where(row.mask[..., None], np.uint8(GREY), row.photograph)
        for column, picture in enumerate((row.photograph, masked, *row.pictures)):
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas.paste(Image.fromarray(large), (MARGIN + column * wide, top))
    return np.array(canvas)


def _title(method: str, bits: str) -> tuple[str, str]:
    """Two lines, of which the narrowest column has room for some 20 letters each."""
    first, _, second = method.partition(", ")
    return first, f"{bits} {second}".strip()
