"""Read people's pictures: any format, mode and orientation that Pillow knows, as 8-bit sRGB."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text

# Of a picture: what a large camera makes. More would take gigabytes before anything is seen of it.
MOST_PIXELS = 100_000_000
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ReadPicture:
    """A picture as people see it, upright.

    Attributes:
        pixels: uint8 [H, W, 3], sRGB.
        transparent: bool [H, W], True where alpha is below a half; None where there is no alpha.
    """

    pixels: NDArray[np.uint8]
    transparent: NDArray[np.bool_] | None


def read_picture(path: str | os.PathLike[str]) -> ReadPicture:
    """Read a picture file.

    Raises:
        NextscaleError: no file, no picture, a damaged one, or one of more than MOST_PIXELS.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        has_alpha = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
        alpha = np.asarray(upright.convert("RGBA").getchannel("A")) if has_alpha else None
        return ReadPicture(np.array(_in_srgb(upright)), None if alpha is None else alpha < 128)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask of a picture of `size`, [H, W]: True where it is lighter than middle grey, or, of one colour with
    alpha, where it is opaque.

    Raises:
        NextscaleError: as for `read_picture`; another size; nothing is marked, or all of it is.
    """
    read = read_picture(path)
    if read.pixels.shape[:2] != size:
        (height, width), (found_height, found_width) = size, read.pixels.shape[:2]
        raise NextscaleError(
            f"{shown_text(str(path))}: a mask of {found_width} x {found_height} pixels; expected the picture's, "
            f"{width} x {height}"
        )
    light = read.pixels.mean(axis=-1) >= 128
    mask = light if read.transparent is None or light.any() != light.all() else ~read.transparent
    if not mask.any():
        raise NextscaleError(f"{shown_text(str(path))}: all of the mask is black; white marks what is made anew")
    if mask.all():
        raise NextscaleError(
            f"{shown_text(str(path))}: all of the mask is white, so that nothing of the picture would be kept; black "
            "marks what is kept"
        )
    return mask


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    """The picture, loaded."""
    name = shown_text(str(path))
    require_regular(Path(path), NextscaleError)
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is refused below, by a limit of its own, and of oddities of formats.
            warnings.simplefilter("ignore")
            image = Image.open(path)
            if image.width * image.height > MOST_PIXELS:
                raise NextscaleError(
                    f"{name}: {image.width} x {image.height} pixels; expected at most {MOST_PIXELS // 10**6} million"
                )
            image.load()
    except FileNotFoundError:
        raise NextscaleError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise NextscaleError(f"{name}: not a picture of a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise NextscaleError(f"{name}: more pixels than {MOST_PIXELS // 10**6} million") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise NextscaleError(f"{name}: the picture cannot be read: {shown_text(str(error))}") from None
    return image


def _in_srgb(image: Image.Image) -> Image.Image:
    """Of 16 bits the upper 8; colours by the picture's own profile, where it has a sound one."""
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        try:
            converted = ImageCms.profileToProfile(
                image.convert("RGB") if image.mode == "RGBA" else image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
