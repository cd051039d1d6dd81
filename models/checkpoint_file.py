"""Read a checkpoint's file, or the shards that an index lists, without executing anything in them."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import is_plain_name
from nextscale.runtime._regular_file import require_regular

EXPECTED = "expected a .pth, .pt or .safetensors file, or an index of shards (.index.json)"
INDEX_SUFFIX = ".index.json"
# A training checkpoint of the largest release, with its optimizer, has a tenth of it.
MAX_TENSORS = 20_000
MAX_HEADER = 8 * 2**20  # bytes of a safetensors header, of a pickle beside its tensors, and of an index
MAX_SHARDS = 1000
SHOWN_FILES = 5
# The pickle of a number with which files of torch.save before 1.6 begin.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LONGEST_MAGIC = 2 + 9 + len(LEGACY_MAGIC)  # with the protocol and, of protocols 4 and 5, the length of a frame


class CheckpointError(NextscaleError):
    """A checkpoint that cannot be read, or does not hold the model it should."""


def read_checkpoint(path: Path) -> object:
    """What a checkpoint holds: tensors by name, or dictionaries and lists around such.

    The file is mapped into memory where its format allows, so its tensors take no memory until they are read.

    Args:
        path: a file, whose format is told from its first bytes; an index of shards; or a folder with one such index,
            or without one but with one file.
    Raises:
        CheckpointError: no such file, truncated, foreign, far too many tensors, or Python objects beside them.
    """
    if path.is_dir():
        path = _only_checkpoint(path)
    return _read_shards(path) if path.name.endswith(INDEX_SUFFIX) else _read_file(path)


def _only_checkpoint(folder: Path) -> Path:
    """The index in a folder, or else its .safetensors file, or else its file of torch."""
    kinds = ((INDEX_SUFFIX,), (".safetensors",), (".pth", ".pt", ".bin"))
    files = sorted(folder.glob("*"))
    found = next((kind for suffixes in kinds if (kind := [f for f in files if f.name.endswith(suffixes)])), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{folder} is a folder without a checkpoint; {EXPECTED}")
    names = ", ".join([file.name for file in found[:SHOWN_FILES]] + ["…"] * (len(found) > SHOWN_FILES))
    raise CheckpointError(
        f"{folder} is a folder with {len(found)} checkpoints ({names}); expected one index of shards or one file; give "
        "the path of one"
    )


def first_line(error: Exception) -> str:
    """Of a library's message, or else the error's name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read_shards(path: Path) -> dict[str, object]:
    """The tensors that an index lists, from the files beside it."""
    by_file: dict[str, list[str]] = {}
    for name, file in _read_index(path).items():
        by_file.setdefault(file, []).append(name)
    if len(by_file) > MAX_SHARDS:
        raise CheckpointError(f"{path} lists {len(by_file)} files; expected at most {MAX_SHARDS}")
    found: dict[str, object] = {}
    for file, names in by_file.items():
        shard = path.parent / file
        content = _read_file(shard)
        missing = [name for name in names if not isinstance(content, dict) or name not in content]
        if missing:
            raise CheckpointError(f"{shard} has no tensor {missing[0]}, which {path.name} says is there")
        assert isinstance(content, dict)
        found |= {name: content[name] for name in names}
    return found


def _read_index(path: Path) -> Mapping[str, str]:
    """Tensor names to names of files in the same folder."""
    require_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_HEADER + 1)
        if len(text) > MAX_HEADER:
            raise CheckpointError(f"{path} is larger than {MAX_HEADER} bytes, which no index of shards is")
        document = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON document ({first_line(error)}); download it again") from None
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) and is_plain_name(name) for name in files.values()):
        raise CheckpointError(f'{path}: expected a "weight_map" of tensor names to names of files in the same folder')
    _require_few(path, len(files))
    return files


def _read_file(path: Path) -> object:
    require_regular(path, CheckpointError)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {EXPECTED}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file itself")
    if head.startswith(b"PK\x03\x04"):
        return _read_torch_zip(path)
    # A pickle begins with 0x80, but so does every 32nd safetensors file: with the length of its header.
    if head[:1] == b"\x80" and head[8:9] != b"{":
        return _read_pickle(path, head)
    if head[8:9] == b"{":
        return _read_safetensors(path, int.from_bytes(head[:8], "little"))
    raise CheckpointError(f"{path} is neither a torch (.pth, .pt) nor a .safetensors file")


def _read_torch_zip(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # BadZipFile, and others for names and numbers that no archive has
        raise CheckpointError(f"{path} is truncated or damaged; copy or download it again") from None
    names = [entry.filename.split("/")[-1] for entry in entries]
    pickles = [entry for entry, name in zip(entries, names, strict=True) if name == "data.pkl"]
    if not pickles:
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    _require_few(path, len(entries))
    if max(entry.file_size for entry in pickles) > MAX_HEADER:
        raise CheckpointError(
            f"{path}: what it holds beside tensors takes over {MAX_HEADER} bytes; save its state dict alone"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, which is not executed; save its state dict alone")
    return _torch_load(path, _protocol(_begin(path, pickles[0])), mmap=True)


def _begin(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The first two bytes of an archive's file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            return file.read(2)
    except Exception as error:  # each method of compression has its own errors, and so has a password
        raise CheckpointError(f"{path} is truncated or damaged ({first_line(error)})") from error


def _read_pickle(path: Path, head: bytes) -> object:
    if LEGACY_MAGIC not in head[:LONGEST_MAGIC] and len(head) > LONGEST_MAGIC:
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write, or is damaged; such are not loaded for safety; "
            "where it was made, save its tensors with torch.save"
        )
    return _torch_load(path, _protocol(head), mmap=False)


def _protocol(pickled: bytes) -> str:
    """Of a pickle, by its first two bytes; the oldest ones do not say."""
    return str(pickled[1]) if len(pickled) > 1 and pickled[:1] == b"\x80" else "0 or 1"


def _torch_load(path: Path, protocol: str, *, mmap: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about protocols and storages: nothing that a user could change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if protocol != "2" and "Unsupported operand" in str(error):
            raise CheckpointError(
                f"{path} is written with pickle protocol {protocol}, of which torch's safe loader reads only a part; "
                "where it was made, save it again with torch.save(…) as it is, without another pickle_protocol"
            ) from error
        found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects{f' ({found[1]})' if found else ''} beside tensors, which are "
            "not loaded for safety; save its state dict alone"
        ) from error
    except Exception as error:  # cut anywhere, a pickle raises almost anything: IndexError, struct.error, EOFError, …
        raise CheckpointError(f"{path} is truncated or damaged ({first_line(error)})") from error


def _read_safetensors(path: Path, header_size: int) -> dict[str, Tensor]:
    if header_size > MAX_HEADER:
        raise CheckpointError(
            f"{path} is damaged: its header would have {header_size} bytes; expected at most {MAX_HEADER}"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            names = list(file.keys())
            _require_few(path, len(names))
            return {name: _tensor(file, name, path) for name in names}
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is a truncated or damaged .safetensors file ({first_line(error)})") from error


def _tensor(file: safetensors.safe_open, name: str, path: Path) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError):
        dtype = file.get_slice(name).get_dtype()
        raise CheckpointError(f"{path}: {name} is {dtype}, which this release of torch cannot hold") from None
    return tensor


def _require_few(path: Path, number: int) -> None:
    if number > MAX_TENSORS:
        raise CheckpointError(f"{path} has {number} tensors; expected at most {MAX_TENSORS}: this is no generator")
