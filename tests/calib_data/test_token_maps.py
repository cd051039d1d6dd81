from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.calib_data.token_maps import ARRAYS, MANIFEST, TokenMaps
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._npz import read_npz

MODEL = ModelInfo(
    num_classes=10,
    stage_sizes=((1, 1), (2, 2)),
    image_size=(8, 8),
    vocab_size=32,
    depth=1,
    embed_dim=8,
    num_heads=1,
    latent_channels=4,
    latent_size=(2, 2),
)


def maps(images: int = 3) -> TokenMaps:
    rng = np.random.default_rng(0)
    return TokenMaps(rng.integers(0, 10, images), rng.integers(0, 32, (images, 5)), {"settings": {"seed": 7}})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    maps().save(tmp_path / "maps")
    return tmp_path / "maps"


def test_what_was_saved_is_loaded(saved: Path) -> None:
    loaded = TokenMaps.load(saved, MODEL)
    np.testing.assert_array_equal(loaded.class_labels, maps().class_labels)
    np.testing.assert_array_equal(loaded.token_maps, maps().token_maps)
    assert loaded.settings == maps().settings
    assert len(loaded) == 3


def test_the_manifest_says_what_it_is(saved: Path) -> None:
    assert json.loads((saved / MANIFEST).read_text()) == {
        "schema": 1, "images": 3, "tokens": 5, "settings": {"seed": 7},
    }  # fmt: skip


def test_the_folder_appears_complete_with_further_files(tmp_path: Path) -> None:
    maps().save(tmp_path / "a" / "maps", {"note": lambda file: file.write(b"x")})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["maps"]
    assert sorted(path.name for path in (tmp_path / "a" / "maps").iterdir()) == [MANIFEST, "note", ARRAYS]
    assert (tmp_path / "a" / "maps").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(file: object) -> None:
        raise error

    with pytest.raises(error):
        maps().save(tmp_path / "maps", {"note": fail})
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(saved: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        maps().save(saved)


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot write there"):
        maps().save(Path("/proc/none/maps"))


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(NextscaleError, match=message) as caught:
        TokenMaps.load(folder, MODEL)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "none: no such folder")


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refuse(saved, f"{name}: cannot be read: No such file")


MANIFESTS = {
    "no JSON": ("{", "no JSON"),
    "no text": ("\0", "no JSON"),
    "nested": ("[" * 100_000, "no JSON"),
    "a list": ("[]", "schema 1, found None"),
    "newer": ('{"schema": 2}', "schema 1, found 2"),
}


@pytest.mark.parametrize(("text", "message"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_bad_manifest_is_refused(saved: Path, text: str, message: str) -> None:
    (saved / MANIFEST).write_text(text)
    refuse(saved, message)


LABELS, TOKENS = maps().class_labels, maps().token_maps
BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"class_labels": LABELS}, "token_maps"),
    "objects": ({"class_labels": np.array([None]), "token_maps": TOKENS}, "class_labels is of Python's objects"),
    "label type": ({"class_labels": LABELS.astype(np.int32), "token_maps": TOKENS}, "class_labels: expected int64"),
    "label rank": (
        {"class_labels": LABELS[:, None], "token_maps": TOKENS},
        r"expected int64 \[1\], found int64 \[3, 1",
    ),
    "empty": ({"class_labels": LABELS[:0], "token_maps": TOKENS[:0]}, r"expected int64 \[1\], found int64 \[0\]"),
    "null class": ({"class_labels": LABELS * 0 + 10, "token_maps": TOKENS}, "expected 0 to 9, found 10 to 10"),
    "length": ({"class_labels": LABELS, "token_maps": TOKENS[:, 1:]}, r"expected int64 \[3, 5\], found int64 \[3, 4\]"),
    "images": ({"class_labels": LABELS, "token_maps": TOKENS[1:]}, r"expected int64 \[3, 5\], found int64 \[2, 5\]"),
    "token type": ({"class_labels": LABELS, "token_maps": TOKENS * 1.0}, "token_maps: expected int64"),
    "token": ({"class_labels": LABELS, "token_maps": TOKENS + 32}, "token_maps: expected 0 to 31, found 32"),
    "negative token": ({"class_labels": LABELS, "token_maps": TOKENS - 32}, "token_maps: expected 0 to 31, found -"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays_are_refused(saved: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(saved / ARRAYS, **arrays)
    refuse(saved, message)


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.float16, np.complex64, ">i8", "U3", "M8[s]", [("x", "i8")]], ids=str
)
def test_other_types_of_tokens_are_refused(saved: Path, dtype: Any) -> None:
    np.savez(saved / ARRAYS, class_labels=LABELS, token_maps=np.zeros(TOKENS.shape, dtype))
    refuse(saved, r"token_maps: expected int64 \[3, 5\], found ")


def test_a_single_array_is_refused(saved: Path) -> None:
    with (saved / ARRAYS).open("wb") as file:
        np.save(file, TOKENS)
    refuse(saved, "expected an .npz of class_labels and token_maps, found a single array")


def test_an_array_that_no_memory_holds_is_refused(saved: Path) -> None:
    header = io.BytesIO()
    shape = (3, 2**57)
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(saved / ARRAYS, "w") as archive:
        for name in ("class_labels", "token_maps"):
            archive.writestr(f"{name}.npy", header.getvalue())
    refuse(saved, "damaged")


def test_every_truncation_is_refused(saved: Path) -> None:
    content = (saved / ARRAYS).read_bytes()
    for length in range(0, len(content), math.ceil(len(content) / 50)):
        (saved / ARRAYS).write_bytes(content[:length])
        refuse(saved, ARRAYS)


def test_random_damage_is_refused_or_harmless(saved: Path) -> None:
    """One byte anywhere: the zip's checksum, or a field that nobody reads."""
    content, rng = (saved / ARRAYS).read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        (saved / ARRAYS).write_bytes(damaged)
        try:
            loaded = TokenMaps.load(saved, MODEL)
        except NextscaleError:
            continue
        np.testing.assert_array_equal(loaded.token_maps, TOKENS)


def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        read_npz(make_fifo(tmp_path / "maps.npz"), ["token_maps"])
