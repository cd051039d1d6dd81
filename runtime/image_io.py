"""Write pictures and arrays to files, whole or not at all; a PNG contains the parameters that made it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, features
from PIL.PngImagePlugin import PngInfo

from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._outputs import Writer, require_absent, require_writable, write_files
from nextscale.runtime._wording import shown_number

__all__ = [
    "FORMATS",
    "METADATA_KEY",
    "Writer",
    "make_grid",
    "npz_writer",
    "picture_writer",
    "png_writer",
    "read_picture_parameters",
    "require_absent",
    "require_picture_format",
    "require_writable",
    "write_files",
]

METADATA_KEY = "nextscale"
# By suffix: the format's name, and the longest side that it has.
FORMATS = {
    ".png": ("PNG", 2**31 - 1),
    ".jpg": ("JPEG", 65_500),
    ".jpeg": ("JPEG", 65_500),
    ".webp": ("WEBP", 16_383),
}
_MOST_EMPTY_CELLS = 10_000
_EXIF_LIMIT = 65_000  # bytes; JPEG has 65,533 for it


def make_grid(images: NDArray[np.uint8], columns: int | None = None, rows: int | None = None) -> NDArray[np.uint8]:
    """Lay images out on one sheet, row by row; cells left over are white.

    Args:
        images: uint8 [B, H, W, 3].
        columns: None makes the sheet as square as B allows.
        rows: None takes as many as needed.
    Returns:
        uint8 [rows*H, columns*W, 3].
    Raises:
        NextscaleError: the cells are too few, or far too many.
    """
    count, height, width, channels = images.shape
    columns = columns or -(-count // max(1, int(count**0.5)))
    rows = rows or -(-count // columns)
    if columns * rows < count:
        raise NextscaleError(f"a grid of {columns}x{rows} has {columns * rows} cells, too few for {count} images")
    empty = columns * rows - count
    if empty > _MOST_EMPTY_CELLS:
        grid = f"{shown_number(columns)}x{shown_number(rows)}"
        raise NextscaleError(
            f"a grid of {grid} leaves {shown_number(empty)} cells empty; expected at most {_MOST_EMPTY_CELLS}: "
            "give fewer columns or rows"
        )
    cells = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    cells[:count] = images
    return cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def png_writer(image: NDArray[np.uint8], parameters: Mapping[str, Any]) -> Writer:
    """Write uint8 [H, W, 3] as a PNG whose text chunk "nextscale" holds the parameters as JSON."""
    info = PngInfo()
    info.add_text(METADATA_KEY, json.dumps(parameters))
    return lambda file: Image.fromarray(image).save(file, format="PNG", pnginfo=info)


def picture_writer(path: Path, image: NDArray[np.uint8], parameters: Mapping[str, Any]) -> Writer:
    """Write uint8 [H, W, 3] in the format of the path's suffix, with the parameters inside.

    A PNG is one of `png_writer`. JPEG and WebP, which are not exact (quality 95), have {"nextscale": parameters} in
    EXIF's image description. That holds 64 KB: names and then ids of the classes are left out where there are too many.

    Raises:
        OutputError: another suffix, or sides that the format does not have.
    """
    format_name = require_picture_format(path, image.shape[0], image.shape[1])
    if format_name == "PNG":
        return png_writer(image, parameters)
    options = {"quality": 95, "exif": _exif_of(parameters), **({"subsampling": 0} if format_name == "JPEG" else {})}
    return lambda file: Image.fromarray(image).save(file, format=format_name, **options)


def require_picture_format(path: Path, height: int = 1, width: int = 1) -> str:
    """Find out before a long computation whether a picture can be written; returns the name of its format.

    Raises:
        OutputError: the suffix is of no format, Pillow lacks the format, or the format has no such sides.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"cannot write {path}: pictures are written as {', '.join(FORMATS)}; give such a name")
    format_name, longest = FORMATS[path.suffix.lower()]
    if format_name == "WEBP" and not features.check("webp"):
        raise OutputError(f"cannot write {path}: this installation of Pillow has no WebP: write a PNG")
    if max(height, width) > longest:
        raise OutputError(
            f"cannot write {path}: {width} x {height} pixels are more than the {longest} that {format_name} has: "
            "write a PNG or fewer images"
        )
    return format_name


def _exif_of(parameters: Mapping[str, Any]) -> bytes:
    for left_out in ((), ("class_names",), ("class_names", "classes")):
        kept = {name: value for name, value in parameters.items() if name not in left_out}
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = json.dumps({METADATA_KEY: kept})
        content = exif.tobytes()
        if len(content) <= _EXIF_LIMIT:
            break
    return content


def npz_writer(arrays: Mapping[str, NDArray[Any]]) -> Writer:
    """Write arrays as a compressed .npz."""
    return lambda file: np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_picture_parameters(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The parameters inside a picture that `picture_writer` wrote; None if it holds none."""
    with Image.open(path) as image:
        text = image.info.get(METADATA_KEY)
        description = image.getexif().get(ExifTags.Base.ImageDescription)
    if text is not None:
        return dict(json.loads(text))
    try:
        return dict(json.loads(description)[METADATA_KEY])
    except (TypeError, ValueError, KeyError):  # another program's description, or none
        return None
