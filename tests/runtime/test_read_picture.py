"""Pictures as people have them, against arrays turned and counted here."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from nextscale.runtime import NextscaleError
from nextscale.runtime import _read_picture as reading
from nextscale.runtime._read_picture import read_mask, read_picture

RGB = np.random.default_rng(3).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RGB[..., 0]
ALPHA = np.random.default_rng(4).integers(0, 256, GREY.shape).astype(np.uint8)
COLOURED_GREY = GREY[..., None].repeat(3, axis=-1)


def saved(path: Path, array: NDArray[Any] | Image.Image, **options: Any) -> Path:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def png(width: int, height: int, depth: int, colour: int, lines: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG by its specification, also of kinds that Pillow does not write, and of sizes that it does not have."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen),
    0: lambda seen: seen,
    9: lambda seen: seen,
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", RGB, exif=exif, **options)
    np.testing.assert_array_equal(read_picture(path).pixels, UPRIGHT[orientation](RGB))


def test_transparency_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_picture(saved(tmp_path / "a.png", np.dstack([RGB, ALPHA]), exif=exif))
    np.testing.assert_array_equal(read.transparent, np.rot90(ALPHA, -1) < 128)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b"\xff" * 40])
def test_damaged_exif_is_passed_over(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "a.png", RGB, exif=exif)
    np.testing.assert_array_equal(read_picture(path).pixels, RGB)


def test_grey_and_coloured(tmp_path: Path) -> None:
    for array, wanted in ((RGB, RGB), (GREY, COLOURED_GREY)):
        read = read_picture(saved(tmp_path / "a.png", array))
        np.testing.assert_array_equal(read.pixels, wanted)
        assert read.transparent is None


def test_with_alpha(tmp_path: Path) -> None:
    for colours, wanted in ((RGB, RGB), (GREY, COLOURED_GREY)):
        read = read_picture(saved(tmp_path / "a.png", np.dstack([colours, ALPHA])))
        np.testing.assert_array_equal(read.pixels, wanted)
        np.testing.assert_array_equal(read.transparent, ALPHA < 128)


def test_one_bit(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY > 99))
    np.testing.assert_array_equal(read_picture(path).pixels[..., 1], 255 * (GREY > 99))


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    indices = (GREY % 4).astype(np.uint8)
    palette = np.array([[1, 2, 3], [250, 0, 9], [7, 70, 170], [255, 255, 255]], np.uint8)
    image = Image.frombytes("P", (7, 5), indices.tobytes())
    image.putpalette(palette.tobytes())
    for suffix in ("png", "gif"):
        read = read_picture(saved(tmp_path / f"a.{suffix}", image, transparency=2))
        np.testing.assert_array_equal(read.pixels, palette[indices])
        np.testing.assert_array_equal(read.transparent, indices == 2)


def test_a_transparent_colour(tmp_path: Path) -> None:
    colour = tuple(RGB[2, 3].tolist())
    read = read_picture(saved(tmp_path / "a.png", Image.fromarray(RGB), transparency=colour))
    np.testing.assert_array_equal(read.transparent, (RGB[2, 3] == RGB).all(axis=-1))


def test_cmyk(tmp_path: Path) -> None:
    cmyk = np.random.default_rng(5).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    path = saved(tmp_path / "a.tiff", Image.frombytes("CMYK", (7, 5), cmyk.tobytes()))
    shares = 1 - cmyk.astype(float) / 255
    np.testing.assert_allclose(read_picture(path).pixels, 255 * shares[..., :3] * shares[..., 3:], atol=1)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_of_grey_are_rounded_to_eight(tmp_path: Path, suffix: str) -> None:
    deep = np.concatenate([np.arange(0, 65536, 100), [65535, 128, 129, 385, 386]]).astype(np.uint16)[None]
    image = Image.fromarray(deep.astype(np.int32)) if suffix == "pgm" else Image.fromarray(deep)
    read = read_picture(saved(tmp_path / f"a.{suffix}", image))
    np.testing.assert_array_equal(read.pixels[..., 2], np.floor(deep / 257 + 0.5))
    assert read.transparent is None


def test_sixteen_bits_of_grey_with_a_transparent_one(tmp_path: Path) -> None:
    deep = np.array([[5, 1000, 65535]], ">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(3, 1, 16, 0, b"\0" + deep.tobytes(), (b"tRNS", struct.pack(">H", 1000))))
    read = read_picture(path)
    np.testing.assert_array_equal(read.pixels[0, :, 0], [0, 4, 255])
    np.testing.assert_array_equal(read.transparent, [[False, True, False]])


def test_sixteen_bits_of_colours(tmp_path: Path) -> None:
    """Pillow has their upper eight."""
    deep = (RGB * 256.0 + 37).astype(">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(7, 5, 16, 2, b"".join(b"\0" + line.tobytes() for line in deep)))
    np.testing.assert_array_equal(read_picture(path).pixels, RGB)


def test_floats_are_shares_of_white_or_of_255(tmp_path: Path) -> None:
    shares = np.array([[0, 0.25, 0.5, 1, -3, np.nan]], np.float32)
    read = read_picture(saved(tmp_path / "a.tiff", shares))
    np.testing.assert_array_equal(read.pixels[0, :, 0], [0, 64, 128, 255, 0, 0])
    parts = np.array([[0, 0.6, 127.4, 255, 300, np.inf]], np.float32)
    read = read_picture(saved(tmp_path / "a.tiff", parts))
    np.testing.assert_array_equal(read.pixels[0, :, 0], [0, 1, 127, 255, 255, 255])


def with_swapped_primaries() -> bytes:
    """sRGB's profile with red's and blue's columns changed: a picture in it has red and blue the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_those_of_the_pictures_profile(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode, palette=Image.Palette.ADAPTIVE)
    plain = np.asarray(image.convert("RGB")).astype(int)
    path = saved(tmp_path / "a.png", image, icc_profile=with_swapped_primaries())
    np.testing.assert_allclose(read_picture(path).pixels, plain[..., ::-1], atol=2)


def test_a_profile_of_another_white_point_and_gamma_is_followed(tmp_path: Path) -> None:
    """Against the library of profiles, called directly."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    lab = Image.frombytes("LAB", (7, 5), RGB.tobytes())
    wanted = ImageCms.profileToProfile(lab, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    path = saved(tmp_path / "a.tiff", lab, icc_profile=profile.tobytes())
    assert wanted is not None
    np.testing.assert_array_equal(read_picture(path).pixels, np.asarray(wanted))


@pytest.mark.parametrize("profile", [b"none", with_swapped_primaries()[:200], b"\0" * 5000])
def test_a_broken_profile_is_passed_over(tmp_path: Path, profile: bytes) -> None:
    path = saved(tmp_path / "a.png", RGB, icc_profile=profile)
    np.testing.assert_array_equal(read_picture(path).pixels, RGB)


def test_a_profile_of_other_colours_is_passed_over(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", GREY, icc_profile=with_swapped_primaries())
    np.testing.assert_array_equal(read_picture(path).pixels, COLOURED_GREY)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_of_several_pictures_it_is_the_first(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (7, 5), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second], **options)
    assert np.unique(read_picture(path).pixels.reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RGB, format="PNG")
    np.testing.assert_array_equal(read_picture(path).pixels, RGB)


def whole(suffix: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8)).save(content, suffix)
    return content.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
BROKEN = {
    "nothing": (b"", "no picture, or damaged from its beginning; what is read: AVIF, BMP"),
    "text": (b"a picture, no doubt", "no picture, or damaged"),
    "program": (EPS, "no picture, or damaged"),
    "PNG": (whole("PNG")[:500], "the picture cannot be read: image file is truncated"),
    "JPEG": (whole("JPEG")[:1000], "the picture cannot be read: "),
    "WebP": (whole("WEBP")[:200], "the picture cannot be read: "),
    "TIFF": (whole("TIFF")[:500], "the picture cannot be read: "),
    "GIF": (whole("GIF")[:300], "no picture, or damaged"),
    "header": (whole("PNG")[:40], "no picture, or damaged"),
    "huge": (png(100_000, 100_000, 8, 2, b""), "more than 100 million pixels"),
    "large": (png(10_001, 10_000, 1, 0, b""), "more than 100 million pixels"),
    "wide": (png(2**31 - 1, 1, 8, 2, b""), "more than 100 million pixels"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("suffix", ["png", "jpg", ""])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(NextscaleError) as found:
        read_picture(path)
    assert str(found.value).startswith(f"{path}: {message}")
    assert "\n" not in str(found.value)


def test_the_largest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_PIXELS", 35)
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", RGB)).pixels, RGB)
    with pytest.raises(NextscaleError, match="more than"):
        read_picture(saved(tmp_path / "a.png", np.zeros((4, 9), np.uint8)))


def test_no_file_a_folder_and_a_pipe(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match=r"none\.png: no such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(NextscaleError, match="the picture cannot be read: Is a directory"):
        read_picture(tmp_path)
    with pytest.raises(NextscaleError, match="not a regular file"):
        read_picture(make_fifo(tmp_path / "pipe.png"))


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "TGA"])
def test_any_damage_is_an_error_or_a_picture(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng, content, path = np.random.default_rng(6), whole(suffix), tmp_path / "a"
    for _ in range(30):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), 300), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(content)) if rng.random() < 0.3 else None])
        try:
            read = read_picture(path)
        except NextscaleError:
            continue
        assert read.pixels.dtype == np.uint8
        assert read.pixels.shape[2] == 3
        assert read.pixels.size
    assert capfd.readouterr() == ("", "")


def test_what_pillow_logs_does_not_reach_stderr(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", RGB)
    entry = struct.pack("<HHIHH", 277, 3, 1, 3, 0)  # samples per pixel
    path.write_bytes(path.read_bytes().replace(entry, struct.pack("<HHIHH", 277, 3, 1, 2048, 0)))
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from nextscale.runtime._read_picture import read_picture\n"
        "try: read_picture(sys.argv[1])\n"
        "except Exception as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"{path}: no picture, or damaged")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [False, True])
def test_what_libtiff_says_does_not_reach_stderr(
    tmp_path: Path, closed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.tiff", np.zeros((40, 50), np.uint8), compression="tiff_adobe_deflate")
    content = path.read_bytes()
    path.write_bytes(content.replace(content[8:16], b"\xff" * 8, 1))
    stderr = os.dup(2)
    try:
        if closed:
            os.close(2)
        with pytest.raises(NextscaleError, match="the picture cannot be read"):
            read_picture(path)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "after")


MARKED = np.zeros(GREY.shape, np.bool_)
MARKED[1:3, 2:6] = True


@pytest.mark.parametrize(("light", "dark"), [(255, 0), (128, 127)])
def test_a_mask_is_what_is_light(tmp_path: Path, light: int, dark: int) -> None:
    grey = np.where(MARKED, light, dark).astype(np.uint8)
    palette = Image.frombytes("P", (7, 5), MARKED.astype(np.uint8).tobytes())
    palette.putpalette([dark] * 3 + [light] * 3)
    opaque = np.dstack([grey, np.full_like(grey, 255)])
    for image in (grey, grey[..., None].repeat(3, axis=-1), palette, opaque, grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", image), GREY.shape), MARKED)


def test_a_mask_of_colours_goes_by_their_mean(tmp_path: Path) -> None:
    mask = np.where(MARKED[..., None], [255, 129, 0], [255, 127, 0]).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask), GREY.shape), MARKED)


@pytest.mark.parametrize("drawn", [0, 255])
@pytest.mark.parametrize("behind", [0, 255])
def test_of_one_colour_a_mask_is_what_is_opaque(tmp_path: Path, drawn: int, behind: int) -> None:
    """Whatever lies behind transparency."""
    mask = np.dstack([np.where(MARKED, drawn, behind), np.where(MARKED, 200, 100)]).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask), GREY.shape), MARKED)


def test_what_is_transparent_is_not_marked(tmp_path: Path) -> None:
    alpha = np.full(GREY.shape, 255)
    alpha[0] = 0
    white = np.where(MARKED, 255, 0)
    white[0] = 255
    mask = np.dstack([white, alpha]).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask), GREY.shape), MARKED)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((5, 7)), "all of the mask is black"),
        (np.full((5, 7), 255), "all of the mask is white"),
        (np.zeros((5, 7, 2)), "all of the mask is black"),
        (np.dstack([np.zeros((5, 7)), np.full((5, 7), 255)]), "all of the mask is black"),
        (np.full((5, 7, 4), 255), "all of the mask is white"),
        (np.zeros((7, 5)), "a mask of 5 x 7 pixels; expected the picture's, 7 x 5"),
    ],
)
def test_masks_that_mark_nothing_or_all_are_refused(tmp_path: Path, mask: NDArray[Any], message: str) -> None:
    path = saved(tmp_path / "m.png", mask.astype(np.uint8))
    with pytest.raises(NextscaleError, match=message):
        read_mask(path, GREY.shape)
