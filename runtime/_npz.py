"""Read .npz files of which nothing is trusted: what headers claim is checked before memory is taken for it."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nextscale.runtime._errors import NextscaleError, UnreadableError
from nextscale.runtime._regular_file import reading_error, require_regular
from nextscale.runtime._wording import shown_text

Read = TypeVar("Read")
_KINDS = {"f": "floats", "i": "integers", "u": "unsigned integers", "U": "text"}
# Bytes that one byte can stand for: 258 of them take two bits (RFC 1951).
MOST_INFLATED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
MOST_OF_NOTHING = 2**24  # entries of an array without a byte, such as [10**12, 0], which somebody may walk through


def read_npz(
    path: Path, names: Sequence[str] | None = None, *, without: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz; none of Python's objects.

    Args:
        path: the file.
        names: those that are read; None: all.
        without: names of those that are not.
    Raises:
        NextscaleError: the file is missing, damaged, lacks one of them or claims more than it holds; or they do not
            fit into memory.
    """

    def read(file: BinaryIO) -> dict[str, NDArray[Any]]:
        with zipfile.ZipFile(file) as archive:
            found = _arrays(archive, os.fstat(file.fileno()).st_size)
            missing = [name for name in names or () if name not in found]
            if missing:
                raise NextscaleError(f"{path}: no array {missing[0]}; expected {' and '.join(names or ())}")
            wanted = [name for name in (found if names is None else names) if name not in without]
            _require_sizes(archive, {name: found[name] for name in wanted})
            arrays = dict[str, NDArray[Any]]()
            for name in wanted:
                with archive.open(found[name]) as array:
                    arrays[name] = npy.read_array(array, allow_pickle=False)
            return arrays

    return _read(path, names, read)


def checked(
    arrays: Mapping[str, NDArray[Any]], name: str, kinds: str, shape: Sequence[int | None], *, finite: bool = True
) -> NDArray[Any]:
    """One of the arrays that were read, if it is as expected.

    Args:
        arrays: by name.
        name: of the array.
        kinds: of its numbers, one of these of `numpy.dtype.kind`.
        shape: of it; None for an axis of any size.
        finite: refuse floats that are not.
    Raises:
        ValueError: it is missing or another.
    """
    if name not in arrays:
        raise ValueError(f"no array {name}")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in kinds or not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        types = " or ".join(_KINDS[kind] for kind in kinds)
        raise ValueError(f"{name}: expected {types} [{sizes}], found {array.dtype} {list(array.shape)}")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers")
    return array


def array_shape(path: Path, name: str) -> tuple[int, ...] | None:
    """The shape of an array of an .npz, which is not read; None if there is no such array.

    Raises:
        NextscaleError: see `read_npz`.
    """

    def read(file: BinaryIO) -> tuple[int, ...] | None:
        with zipfile.ZipFile(file) as archive:
            entry = _arrays(archive, os.fstat(file.fileno()).st_size).get(name)
            return None if entry is None else _header(archive, entry)[0]

    return _read(path, [name], read)


def _read(path: Path, names: Sequence[str] | None, read: Callable[[BinaryIO], Read]) -> Read:
    """What is read of an open file; whatever goes wrong is one line."""
    require_regular(path)
    try:
        with open(path, "rb") as file:
            if file.read(npy.MAGIC_LEN).startswith(npy.MAGIC_PREFIX):
                expected = "arrays" if names is None else " and ".join(names)
                raise NextscaleError(f"{path}: expected an .npz of {expected}, found a single array")
            return read(file)
    except NextscaleError:
        raise
    except OSError as error:
        raise reading_error(path, error) from None
    except MemoryError:
        raise UnreadableError(f"{path}: damaged, or far too large: an array does not fit into memory") from None
    except Exception as error:  # zipfile, zlib, tokenize and numpy each raise their own
        raise NextscaleError(f"{path}: damaged, or no .npz: {shown_text(str(error), 200)}") from None


def _arrays(archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a file of so many bytes, by name."""
    entries = archive.infolist()
    if sum(entry.compress_size for entry in entries) > length:
        raise ValueError("its arrays take more bytes than it has")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type that an array claims, and the bytes that it has."""
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename} is of version {version}")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        return shape, dtype, entry.file_size - file.tell()


def _require_sizes(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse arrays that claim more than they have, whose bytes cannot be so many, or that no memory holds."""
    for name, entry in entries.items():
        if entry.compress_type not in MOST_INFLATED:
            raise ValueError(f"{name} is compressed otherwise than numpy does")
        if entry.file_size > MOST_INFLATED[entry.compress_type] * entry.compress_size:
            raise ValueError(f"{name} claims {entry.file_size} bytes, which {entry.compress_size} cannot stand for")
        shape, dtype, size = _header(archive, entry)
        if dtype.hasobject:
            raise ValueError(f"{name} is of Python's objects")
        of_nothing = 0 if size else math.prod(axis for axis in shape if axis)
        if math.prod(shape) * dtype.itemsize != size or of_nothing > MOST_OF_NOTHING:
            raise ValueError(f"{name} claims {dtype} {list(shape)}, but has {size} bytes")
    if sum(entry.file_size for entry in entries.values()) > _memory():
        raise MemoryError


def _memory() -> float:
    """Of this machine, in bytes; infinite where it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf
