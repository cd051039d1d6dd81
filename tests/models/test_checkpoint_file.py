from __future__ import annotations

import json
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.models.checkpoint_file import MAX_HEADER, CheckpointError, read_checkpoint

TENSORS = {f"layer{i}.weight": torch.arange(256.0).reshape(16, 16) + i for i in range(12)}


def assert_tensors(found: object) -> None:
    assert isinstance(found, dict)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist; expected a \.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder without a checkpoint; expected a"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_file(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / "var.bin"
    if form == "safetensors":
        safetensors.torch.save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"var\.bin is (a )?(truncated|damaged)"):
        read_checkpoint(path)


def test_a_legacy_file_cut_anywhere(tmp_path: Path) -> None:
    """At every byte of its pickles and of its numbers."""
    path = tmp_path / "var.pth"
    torch.save({f"w{i}": torch.ones(i) for i in range(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"var\.pth is (truncated|damaged)"):
            read_checkpoint(path)


def test_a_damaged_zip(save: Callable[..., Path]) -> None:
    path = save(TENSORS)
    content = path.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[:directory] + b"XX" + content[directory + 2 :])
    with pytest.raises(CheckpointError, match=r"var\.pth is truncated or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b"hello, world\n" * 9, "neither a torch"),
        (b"\x80\x02not a pickle", "damaged"),
    ],
    ids=["empty", "git-lfs", "html", "text", "pickle"],
)
def test_a_foreign_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "var.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"var\\.pth.*{message}"):
        read_checkpoint(path)


def test_a_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "var.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"is a zip archive, but not one that torch.save wrote"):
        read_checkpoint(tmp_path / "var.pth")


def test_a_whole_python_object_is_not_loaded(save: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"Python objects \(.*Linear\) beside tensors.*save its state dict alone"):
        read_checkpoint(save(nn.Linear(1, 1)))


# Warnings are errors in the tests, so these show that none is printed.


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_protocol_3_is_read(save: Callable[..., Path], zipped: bool) -> None:
    assert_tensors(read_checkpoint(save(TENSORS, pickle_protocol=3, _use_new_zipfile_serialization=zipped)))


@pytest.mark.parametrize(("protocol", "told"), [(0, "0 or 1"), (1, "0 or 1"), (4, "4"), (5, "5")])
def test_pickle_protocols_that_are_not_read_are_named(save: Callable[..., Path], protocol: int, told: str) -> None:
    message = rf"var\.pth is written with pickle protocol {told}, of which .*; where it was made, save it again with"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(TENSORS, pickle_protocol=protocol))
    if protocol >= 2:
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(TENSORS, pickle_protocol=protocol, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_is_not_loaded(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "var.pkl"
    path.write_bytes(pickle.dumps(TENSORS, protocol))
    with pytest.raises(CheckpointError, match=r"var\.pkl is a pickle that torch\.save did not write, or is damaged"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_is_not_loaded(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "var.pt")
    with pytest.raises(CheckpointError, match=r"var\.pt is a TorchScript program, which is not executed; save its"):
        read_checkpoint(tmp_path / "var.pt")


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*deprecated:UserWarning")
def test_quantized_tensors_print_nothing(save: Callable[..., Path]) -> None:
    path = save({"w": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(read_checkpoint(path), dict)


def test_safetensors_whose_header_length_begins_like_a_pickle(tmp_path: Path) -> None:
    """0x80 is the first byte of a pickle, and of a header length of 128 modulo 256."""
    path, padding = tmp_path / "model.safetensors", 0
    state = {"a": torch.arange(3.0)}
    while not path.exists() or path.read_bytes()[0] != 0x80:
        safetensors.torch.save_file(state, path, {"padding": "x" * padding})
        padding += 8
    found = read_checkpoint(path)
    assert isinstance(found, dict)
    assert list(found) == ["a"]
    assert torch.equal(found["a"], state["a"])


def shards(folder: Path, weight_map: object, **files: dict[str, Tensor]) -> Path:
    """Shards as safetensors, and their index."""
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_are_read_by_their_index_or_folder(tmp_path: Path) -> None:
    files = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(TENSORS)}
    by_file = {f: {n: TENSORS[n] for n, file in files.items() if file == f"{f}.safetensors"} for f in "ab"}
    index = shards(tmp_path, files, **by_file)
    for path in (index, tmp_path):
        assert_tensors(read_checkpoint(path))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"w": "c.safetensors"}, r"c\.safetensors does not exist"),
        (
            {"v": "a.safetensors"},
            r"a\.safetensors has no tensor v, which model\.safetensors\.index\.json says is there",
        ),
        ({"w": "../a.safetensors"}, "names of files in the same folder"),
        ({"w": 3}, "names of files in the same folder"),
        (["w"], 'expected a "weight_map"'),
        ({f"w{i}": f"{i}.safetensors" for i in range(1001)}, "lists 1001 files; expected at most 1000"),
        ({f"w{i}": "a.safetensors" for i in range(20_001)}, "has 20001 tensors; expected at most 20000"),
    ],
    ids=["no file", "no tensor", "outside", "number", "list", "files", "tensors"],
)
def test_an_index_that_lists_what_is_not_there(tmp_path: Path, weight_map: object, message: str) -> None:
    index = shards(tmp_path, weight_map, a={"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(index)


def test_an_index_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"x\.index\.json is not a JSON document"):
        read_checkpoint(tmp_path)


def test_a_zip_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "var.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e9/data.pkl", b"")
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xc3\xc3"))
    with pytest.raises(CheckpointError, match=r"var\.pth is truncated or damaged; copy or download it again"):
        read_checkpoint(path)


def test_a_folder_of_two_indices(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a folder with 2 checkpoints \(a\.index\.json, b\.index\.json\); exp"):
        read_checkpoint(tmp_path)


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    """A .safetensors file rather than what a trainer leaves beside it, and one of torch where there is no other."""
    torch.save(TENSORS, tmp_path / "var.pth")
    (tmp_path / "config.json").write_text("{}")
    assert_tensors(read_checkpoint(tmp_path))
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"2 checkpoints \(optimizer\.pt, var\.pth\).*; give the path of one"):
        read_checkpoint(tmp_path)
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    assert_tensors(read_checkpoint(tmp_path))
    for i in range(9):
        (tmp_path / f"{i}.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"10 checkpoints \(0\.safetensors, .*4\.safetensors, …\)"):
        read_checkpoint(tmp_path)


# Sizes


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "var.safetensors"
    path.write_bytes((MAX_HEADER + 8).to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(CheckpointError, match=f"its header would have {MAX_HEADER + 8} bytes; expected at most"):
        read_checkpoint(path)


def test_far_too_many_tensors_are_refused_at_once(tmp_path: Path) -> None:
    text = json.dumps(
        {f"blocks.{i}.q_bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    ).encode()
    path = tmp_path / "var.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="has 100000 tensors; expected at most 20000: this is no generator"):
        read_checkpoint(path)
    assert time.monotonic() - began < 5


def test_far_too_many_tensors_of_torch(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the directory of its zip file, before a pickle is read."""
    monkeypatch.setattr("nextscale.models.checkpoint_file.MAX_TENSORS", 10)
    monkeypatch.delattr("torch.load")
    with pytest.raises(CheckpointError, match=r"var\.pth has \d+ tensors; expected at most 10"):
        read_checkpoint(save(TENSORS))


def test_what_lies_beside_tensors_is_bounded(save: Callable[..., Path]) -> None:
    path = save({"w": torch.zeros(1), "log": "x" * (MAX_HEADER + 1)})
    with pytest.raises(CheckpointError, match=f"what it holds beside tensors takes over {MAX_HEADER} bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["var.pth", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: not a regular file"):
        read_checkpoint(make_fifo(tmp_path / name))
