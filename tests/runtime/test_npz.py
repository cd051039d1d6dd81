"""Arrays of files that claim what they do not have."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.evaluate._kept_figures import kept_file
from nextscale.runtime import _npz
from nextscale.runtime._errors import NextscaleError, UnreadableError
from nextscale.runtime._npz import array_shape, read_npz

HUGE = 10**12


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """Of an array, without its numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archived(path: Path, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", content)
    return path


def expanding(path: Path, claimed: int) -> Path:
    """Deflated zeros of which the directory claims that they become so many bytes."""
    head = header(((claimed - 128) // 8,))
    archived(path, head + bytes(2**16))
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, directory + 24, claimed)
    path.write_bytes(content)
    return path


def overlapping(path: Path) -> Path:
    """Many arrays that are the same bytes of the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((2**17,)) + bytes(2**20))
        first = archive.infolist()[0]
        for number in range(100):
            copy = zipfile.ZipInfo(f"{number}.npy")
            for name in ("compress_type", "compress_size", "file_size", "CRC", "header_offset", "flag_bits"):
                setattr(copy, name, getattr(first, name))
            archive.filelist.append(copy)
    return path


CLAIMS: dict[str, Callable[[Path], Path]] = {
    "a header": lambda path: archived(path, header((HUGE,))),
    "a stored header": lambda path: archived(path, header((HUGE,)), zipfile.ZIP_STORED),
    "more than 64 bits": lambda path: archived(path, header((3, 2**62))),
    "negative sizes": lambda path: archived(path, header((-1, -1)) + bytes(8)),
    "less than there is": lambda path: archived(path, header((1,)) + bytes(2**20)),
    "entries of nothing": lambda path: archived(path, header((HUGE, 0))),
    "texts of nothing": lambda path: archived(path, header((HUGE,), "|S0")),
    "texts of nothing, the last axis": lambda path: archived(path, header((1, HUGE), "|S0")),
    "a member that expands": lambda path: expanding(path, 3 * 2**30),
    "bzip2": lambda path: archived(path, header((2**17,)) + bytes(2**20), zipfile.ZIP_BZIP2),
    "the same bytes over and over": overlapping,
    "objects": lambda path: archived(path, header((1,), "|O")),
}


def test_another_compression_is_told(tmp_path: Path) -> None:
    path = CLAIMS["bzip2"](tmp_path / "claims.npz")
    with pytest.raises(NextscaleError, match="is compressed otherwise than numpy does"):
        read_npz(path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read: Is a directory"), kept_file(tmp_path, "begin again"):
        read_npz(tmp_path)


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_checked_before_memory_is_taken(claim: str, tmp_path: Path) -> None:
    path = CLAIMS[claim](tmp_path / "claims.npz")
    tracemalloc.start()
    try:
        with pytest.raises(NextscaleError, match=r"claims\.npz: damaged") as caught:
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(2**17))
    assert len(read_npz(tmp_path / "zeros.npz")["x"]) == 2**17
    monkeypatch.setattr(_npz, "_memory", lambda: 2.0**19)
    with pytest.raises(NextscaleError, match="does not fit into memory"):
        read_npz(tmp_path / "zeros.npz")


def test_nothing_expands_more_than_deflate_can() -> None:
    zeros = zlib.compress(bytes(2**26), 9)
    assert 1000 < 2**26 / len(zeros) < _npz.MOST_INFLATED[zipfile.ZIP_DEFLATED]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: Callable[..., None], tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "numbers": np.arange(12.0).reshape(3, 4).T,
        "none/of pictures": np.zeros((0, 256, 256, 3), np.uint8),
        "scalar": np.array(3),
        "text": np.array("é"),
        "no text": np.array(""),
        "records": np.zeros(2, [("id", "<u2"), ("p", "<f4")]),
    }
    path = tmp_path / "arrays.npz"
    save(path, **arrays)
    found = read_npz(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert [*read_npz(path, ["text", "scalar"])] == ["text", "scalar"]
    assert "numbers" not in read_npz(path, without=["numbers"])
    assert array_shape(path, "none/of pictures") == (0, 256, 256, 3)
    assert array_shape(path, "other") is None
    with pytest.raises(NextscaleError, match=r"arrays\.npz: no array other; expected text and other$"):
        read_npz(path, ["text", "other"])


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(NextscaleError, match=r"expected an \.npz of a and b, found a single array"):
        read_npz(tmp_path / "array.npz", ["a", "b"])
