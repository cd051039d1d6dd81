"""Fig. D: photographs, masks and what each row of Table 3 makes of them, side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextscale.paper._picture_sheet import picture_sheet
from nextscale.paper.table_3 import SheetRow, Table3

GREY = 128


def sheet(table: Table3) -> NDArray[np.uint8]:
    """A line for each photograph: itself, the part that is made anew in grey, and the result of each row.

    Returns:
        uint8 [H, W, 3].
    """
    titles = ["photograph", "mask", *(_title(row.method, row.bits) for row in table.rows)]
    return picture_sheet([_pictures(row) for row in table.sheet], [row.task for row in table.sheet], titles)


def _pictures(row: SheetRow) -> NDArray[np.uint8]:
    masked = np.where(row.mask[..., None], np.uint8(GREY), row.photograph)
    return np.stack([row.photograph, masked, *row.pictures])


def _title(method: str, bits: str) -> str:
    """Two lines, of which the narrowest column has room for some 20 letters each."""
    first, _, second = method.partition(", ")
    return f"{first}\n{bits} {second}".strip()
