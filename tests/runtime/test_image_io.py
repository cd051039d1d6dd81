from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.runtime import NextscaleError, OutputError
from nextscale.runtime.image_io import (
    make_grid,
    npz_writer,
    picture_writer,
    read_picture_parameters,
    require_picture_format,
    write_files,
)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, 4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("count", "columns", "rows", "shape"),
    [(1, None, None, (4, 6)), (4, None, None, (8, 12)), (5, None, None, (8, 18)), (16, None, None, (16, 24)),
     (5, 5, None, (4, 30)), (5, 2, None, (12, 12)), (5, 2, 4, (16, 12)), (2, 1, 2, (8, 6))],
)  # fmt: skip
def test_grid_shapes(count: int, columns: int | None, rows: int | None, shape: tuple[int, int]) -> None:
    assert make_grid(pictures(count), columns, rows).shape == (*shape, 3)


def test_grid_goes_row_by_row_and_ends_white() -> None:
    images = pictures(3)
    sheet = make_grid(images, 2)
    assert np.array_equal(sheet[:4, 6:], images[1])
    assert np.array_equal(sheet[4:, :6], images[2])
    assert (sheet[4:, 6:] == 255).all()


def test_too_small_a_grid_is_refused() -> None:
    with pytest.raises(NextscaleError, match="a grid of 2x2 has 4 cells, too few for 5 images"):
        make_grid(pictures(5), 2, 2)


@pytest.mark.parametrize(("columns", "rows"), [(40_000, 40_000), (99_999_999_999, 9_999_999_999), (20_000, None)])
def test_a_grid_that_is_nearly_empty_is_refused(columns: int, rows: int | None) -> None:
    empty = columns * (rows or 1) - 5
    message = f"a grid of {columns}x{rows or 1} leaves {empty} cells empty; expected at most 10000"
    with pytest.raises(NextscaleError, match=message):
        make_grid(pictures(5), columns, rows)


PARAMETERS = {"seed": 2**64 - 1, "class_names": ["Fjällräv 狐"], "cfg_scale": 1.5, "classes": [3]}


def write_picture(path: Path, image: np.ndarray, parameters: dict[str, object]) -> None:
    write_files({path: picture_writer(path, image, parameters)})


def test_png_keeps_pixels_and_parameters(tmp_path: Path) -> None:
    image = pictures(1)[0]
    write_picture(tmp_path / "a.png", image, PARAMETERS)
    assert read_picture_parameters(tmp_path / "a.png") == PARAMETERS
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), image)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp", "a.WEBP"])
def test_lossy_formats_keep_the_picture_nearly_and_the_parameters(tmp_path: Path, name: str) -> None:
    y, x = np.mgrid[:32, :48]
    image = np.stack([5 * x, 7 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    write_picture(tmp_path / name, image, PARAMETERS)
    assert read_picture_parameters(tmp_path / name) == PARAMETERS
    with Image.open(tmp_path / name) as file:
        assert file.size == (48, 32)
        assert np.abs(np.asarray(file).astype(int) - image).mean() < 3


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize(("images", "left_out"), [(4_000, {"class_names"}), (20_000, {"class_names", "classes"})])
def test_what_exif_cannot_hold_is_left_out(tmp_path: Path, name: str, images: int, left_out: set[str]) -> None:
    parameters = {**PARAMETERS, "class_names": ["golden retriever"] * images, "classes": [207] * images}
    write_picture(tmp_path / name, pictures(1)[0], parameters)
    expected = {key: value for key, value in parameters.items() if key not in left_out}
    assert read_picture_parameters(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "sides", "message"),
    [
        ("a.gif", (1, 1), r"pictures are written as \.png, \.jpg, \.jpeg, \.webp; give such a name"),
        ("a", (1, 1), "pictures are written as"),
        ("a.jpg", (1, 65_501), "65501 x 1 pixels are more than the 65500 that JPEG has"),
        ("a.webp", (16_384, 5), "5 x 16384 pixels are more than the 16383 that WEBP has"),
    ],
)
def test_a_picture_that_no_format_has_is_refused(name: str, sides: tuple[int, int], message: str) -> None:
    with pytest.raises(OutputError, match=f"cannot write {name}: {message}"):
        require_picture_format(Path(name), *sides)


def test_the_longest_sides_can_be_written(tmp_path: Path) -> None:
    for name, side in (("a.jpg", 65_500), ("a.webp", 16_383)):
        write_picture(tmp_path / name, np.zeros((1, side, 3), np.uint8), {})


@pytest.mark.parametrize("name", ["foreign.png", "foreign.jpg", "foreign.webp"])
def test_a_foreign_picture_has_no_parameters(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    Image.fromarray(pictures(1)[0]).save(tmp_path / name)
    assert read_picture_parameters(tmp_path / name) is None
    for description in ("a fox", "[1]", '{"other": 1}'):
        exif[0x010E] = description
        Image.fromarray(pictures(1)[0]).save(tmp_path / name, exif=exif)
        assert read_picture_parameters(tmp_path / name) is None


def test_npz_keeps_arrays(tmp_path: Path) -> None:
    write_files({tmp_path / "a.npz": npz_writer({"images": pictures(2)})})
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["images"], pictures(2))
