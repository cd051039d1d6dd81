"""Read people's pictures: files, modes and orientations of all kinds, as 8-bit sRGB."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or Python prints what it says of a picture

# Of a picture: what a large camera makes. More would take gigabytes before anything is seen of it.
MOST_PIXELS = 100_000_000
# What people keep pictures in. Pillow opens more: EPS, for which it starts Ghostscript, and ICO, whose size lies.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "PSD", "TGA", "TIFF", "WEBP")
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# By EXIF's orientation: what turns a picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ReadPicture:
    """A picture as people see it, upright.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB; what lies behind transparency, too.
        transparent: bool [H, W], True where alpha is below a half; None where there is no alpha.
    """

    pixels: NDArray[np.uint8]
    transparent: NDArray[np.bool_] | None


def read_picture(path: str | os.PathLike[str]) -> ReadPicture:
    """Read a picture file; of several pictures, such as an animation's, the first.

    Raises:
        NextscaleError: no file, no picture, a damaged one, or one of more than MOST_PIXELS.
    """
    with _opened(path) as image:
        with _libtiff_silent() if image.format == "TIFF" else nullcontext():
            image.load()
        turn = _turn(image)
        upright = image if turn is None else image.transpose(turn)
        if upright.mode in ("RGBa", "La"):  # colours times alpha
            upright = upright.convert(upright.mode.upper())
        return ReadPicture(np.array(_in_srgb(upright)), _transparent(upright))


def read_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask of a picture of `size`, [H, W]: True where it is lighter than middle grey and opaque.

    Where the mask is transparent in places and what is opaque is all light or all dark, it is what is opaque.

    Raises:
        NextscaleError: as for `read_picture`; another size; nothing is marked, or all of it is.
    """
    read = read_picture(path)
    if read.pixels.shape[:2] != size:
        (height, width), (found_height, found_width) = size, read.pixels.shape[:2]
        raise NextscaleError(
            f"{path}: a mask of {found_width} x {found_height} pixels; expected the picture's, {width} x {height}"
        )
    mask: NDArray[np.bool_] = read.pixels.sum(axis=-1, dtype=np.uint16) >= 3 * 128
    if read.transparent is not None and read.transparent.any():
        opaque = ~read.transparent
        mask = opaque if len(np.unique(mask[opaque])) == 1 else mask & opaque
    if not mask.any():
        raise NextscaleError(f"{path}: all of the mask is black; white marks what is made anew")
    if mask.all():
        raise NextscaleError(
            f"{path}: all of the mask is white, so that nothing of the picture would be kept; black marks what is kept"
        )
    return mask


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The picture, not yet loaded; what fails in the block is an error of the file."""
    require_regular(Path(path))
    try:
        # Pillow warns of what is refused here, by a limit of its own, and of oddities of formats.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            image = Image.open(file)
            if image.format not in _FORMATS:
                raise UnidentifiedImageError
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except FileNotFoundError:
        raise NextscaleError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        formats = ", ".join(_FORMATS)
        raise NextscaleError(f"{path}: no picture, or damaged from its beginning; what is read: {formats}") from None
    except Image.DecompressionBombError:
        raise NextscaleError(f"{path}: more than {MOST_PIXELS // 10**6} million pixels; give a smaller one") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged pictures raise almost anything: struct.error, IndexError, SyntaxError, …
        what = getattr(error, "strerror", None) or error
        raise NextscaleError(f"{path}: the picture cannot be read: {shown_text(str(what))}") from None


@contextmanager
def _libtiff_silent() -> Iterator[None]:
    """Meanwhile nothing reaches the process's stderr, where libtiff tells of each line of a damaged picture."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above; a picture with damaged EXIF is as whole as one without
        return None


def _transparent(image: Image.Image) -> NDArray[np.bool_] | None:
    key = image.info.get("transparency")
    if image.mode in _SIXTEEN_BITS:
        return None if key is None else np.asarray(image) == key
    if key is None and "A" not in image.getbands():
        return None
    return np.asarray(image.convert("RGBA").getchannel("A")) < 128


def _in_srgb(image: Image.Image) -> Image.Image:
    """In 8 bits; colours by the picture's own profile, where it has a sound one.

    Floats are shares of white, or in 255ths if one is above 1.
    """
    profile = image.info.get("icc_profile")
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray(((np.asarray(image).clip(0, 2**16 - 1).astype(np.int32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8))
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # damaged, or one of other colours
            pass
    return image.convert("RGB")
