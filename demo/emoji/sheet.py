"""Draw a sheet of prompts: `python -m nextscale.demo.emoji.sheet --bundle FULL --bundle INT8 --out sheet.png`.

Each prompt of `sheet.json` is drawn once by each bundle, from the same random numbers; the first bundle's picture
stands above the others', and the prompt below.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nextscale.demo.emoji.prompts import load_prompts
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime.image_io import png_writer, write_files

FILE = Path(__file__).with_name("sheet.json")
COLUMNS = 8
GAP, CAPTION = 4, 46  # pixels between pictures, and for a prompt
LETTERS = 22  # of a prompt's line


def sheet_prompts(path: Path = FILE) -> list[str]:
    """The committed prompts."""
    prompts: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return prompts


def captioned(rows: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures above their captions, so many captions beside each other.

    Args:
        rows: pictures of all captions, uint8 [n, H, W, 3] each; the first ones' are above the second ones'.
    """
    step = rows[0].shape[1] + GAP
    cell = len(rows) * step + CAPTION
    canvas = Image.new("RGB", (columns * step - GAP, -(-len(captions) // columns) * cell), "white")
    pen = ImageDraw.Draw(canvas)
    for i, caption in enumerate(captions):
        left, top = i % columns * step, i // columns * cell
        for row, pixels in enumerate(rows):
            canvas.paste(Image.fromarray(pixels[i]), (left, top + row * step))
        below = (left, top + len(rows) * step - 3)
        pen.multiline_text(below, textwrap.fill(caption, LETTERS), "black", spacing=0, font_size=10)
    return canvas


def drawn(
    bundles: Sequence[Path | Bundle],
    prompts: Sequence[str],
    columns: int = COLUMNS,
    options: SessionOptions | None = None,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """A sheet of prompts, uint8 [H, W, 3], and what it holds of itself: prompts and settings.

    Raises:
        NextscaleError: a bundle is damaged, or takes no prompts.
    """
    settings = asdict(load_prompts()[0])
    rows = [Generator(one, options).generate(prompts=prompts, batch_size=4, **settings).images for one in bundles]
    return np.asarray(captioned(rows, prompts, columns)), {"prompts": prompts, **settings}


@click.command(context_settings={"show_default": True})
@click.option(
    "--bundle",
    "bundles",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    multiple=True,
    help="May be given several times.",
)
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=FILE)
@click.option("--columns", default=COLUMNS)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(bundles: tuple[Path, ...], prompts: Path, columns: int, out: Path) -> None:
    """Draw the prompts by each bundle."""
    picture, described = drawn(bundles, sheet_prompts(prompts), columns)
    write_files({out: png_writer(picture, described | {"rows": [b.name for b in bundles]})})


if __name__ == "__main__":
    main()
