"""Samples from arrays, files, folders and functions; what is missing, too many or of another shape is one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from nextscale.foreign.samples import GraphInput, graph_inputs, random_samples, read_samples
from nextscale.runtime._errors import NextscaleError

IMAGE = GraphInput("image", np.dtype(np.float32), (None, 3, 4, 4))
IDS = GraphInput("ids", np.dtype(np.int64), (1, 5))
PAIRS = GraphInput("pairs", np.dtype(np.float32), (2, None))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 3, 4, 4)).astype(np.float32)
TEXTS = RNG.integers(0, 9, (6, 5))


def test_arrays_are_cut_along_the_first_axis() -> None:
    found = read_samples({"image": IMAGES, "ids": TEXTS}, [IMAGE, IDS])
    assert (len(found), found.origin) == (6, "arrays")
    for i, feed in enumerate(found):
        np.testing.assert_array_equal(feed["image"], IMAGES[i : i + 1])
        np.testing.assert_array_equal(feed["ids"], TEXTS[i : i + 1])


def test_an_axis_of_samples_in_front_of_the_inputs_axes() -> None:
    found = read_samples({"ids": TEXTS[:, None]}, [IDS])
    assert [feed["ids"].shape for feed in found] == [(1, 5)] * 6


def test_inputs_that_take_several_entries_at_once() -> None:
    found = read_samples({"pairs": np.arange(12, dtype=np.float32).reshape(4, 3)}, [PAIRS])
    assert [feed["pairs"].tolist() for feed in found] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_numbers_that_fit_are_converted() -> None:
    found = read_samples({"ids": TEXTS.astype(np.int32), "image": IMAGES.astype(np.float64)}, [IDS, IMAGE])
    assert found.feeds[0]["ids"].dtype == np.int64
    np.testing.assert_array_equal(found.feeds[0]["image"], IMAGES[:1])


def test_files_and_folders(tmp_path: Path) -> None:
    for name, part in (("b", slice(2, 6)), ("a", slice(2))):
        np.savez(tmp_path / f"{name}.npz", image=IMAGES[part], ids=TEXTS[part])
    (tmp_path / "notes.txt").write_text("mine")
    of_folder, of_file = (read_samples(path, [IMAGE, IDS]) for path in (tmp_path, str(tmp_path / "a.npz")))
    assert (len(of_folder), len(of_file)) == (6, 2)
    np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in of_folder]), IMAGES)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (2, 2), (6, 6), (99, 6)])
def test_the_first_of_them(count: int, expected: int) -> None:
    first = read_samples({"image": IMAGES, "ids": TEXTS}, [IMAGE, IDS]).first(count)
    assert (len(first), first.origin) == (expected, "arrays")
    assert [feed["ids"].tolist() for feed in first] == TEXTS[:expected, None].tolist()


def test_a_function_yields_what_each_call_is_fed() -> None:
    found = read_samples(lambda: ({"image": IMAGES[i : i + 2]} for i in (0, 2)), [IMAGE])
    assert [feed["image"].shape[0] for feed in found] == [2, 2]


def test_random_samples_are_those_of_their_seed() -> None:
    first, again, other = (random_samples([IMAGE, IDS], 2, seed) for seed in (3, 3, 4))
    assert first.feeds[0]["image"].shape == (1, 3, 4, 4)
    assert set(np.unique(first.feeds[0]["ids"])) <= {0, 1}
    np.testing.assert_array_equal(first.feeds[1]["image"], again.feeds[1]["image"])
    assert (first.feeds[0]["image"] != other.feeds[0]["image"]).any()


BAD: dict[str, tuple[Any, str]] = {
    "missing": ({"image": IMAGES}, "samples: no array ids; the model's inputs are ids, image"),
    "extra": ({"image": IMAGES, "ids": TEXTS, "x": TEXTS}, "samples: x is no input of the model; expected ids, image"),
    "shape": (
        {"image": IMAGES[..., 1:], "ids": TEXTS},
        "samples: image: float32 [1, 3, 4, 3]; expected float32 [any, 3, 4, 4]",
    ),
    "axes": (
        {"image": IMAGES[:, 0, 0], "ids": TEXTS},
        "samples: image: float32 [1, 4]; expected float32 [any, 3, 4, 4]",
    ),
    "dtype": ({"image": IMAGES, "ids": TEXTS.astype(np.float32)}, "ids: float32 [1, 5]; expected int64 [1, 5]"),
    "numbers": ({"image": IMAGES, "ids": TEXTS[:4]}, "samples: different numbers of samples: 6 of image, 4 of ids"),
    "a scalar": (
        {"image": IMAGES, "ids": np.array(1)},
        "samples: ids: int64 []; expected samples along the first axis",
    ),
    "none": ({"image": IMAGES[:0], "ids": TEXTS[:0]}, "arrays: no samples; expected at least one"),
    "no such file": ("none.npz", "none.npz: "),
    "of a function": (lambda: [{"image": IMAGES[0], "ids": TEXTS[:1]}], "sample 0: image: float32 [3, 4, 4]; expected"),
    "a function of nothing": (lambda: None, "the function of samples gives NoneType"),
    "a function of arrays": (lambda: [IMAGES], "sample 0: ndarray; expected a dictionary"),
    "nothing": (None, "samples: NoneType; expected a dictionary"),
    "an empty function": (list, "a function: no samples"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(NextscaleError) as error:
        read_samples(given, [IMAGE, IDS])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(NextscaleError, match=r"bad\.npz: (damaged|expected an \.npz)"):
        read_samples(tmp_path / "bad.npz", [IMAGE])


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", image=np.array([{}], object))
    with pytest.raises(NextscaleError, match=r"objects\.npz: damaged"):
        read_samples(tmp_path / "objects.npz", [IMAGE])


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match=r"has no \.npz files"):
        read_samples(tmp_path, [IMAGE])


def test_the_inputs_of_a_graph() -> None:
    graph = ir.Graph(
        [
            ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 3])),
            ir.Value(name="any", type=ir.TensorType(ir.DataType.INT64)),
        ],
        [],
        nodes=[],
    )
    assert graph_inputs(graph) == (
        GraphInput("x", np.dtype(np.float32), (None, 3)),
        GraphInput("any", np.dtype(np.int64), None),
    )
    graph.inputs[1].type = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    with pytest.raises(NextscaleError, match=r"input any: .*expected a tensor of numbers"):
        graph_inputs(graph)


def test_more_numbers_than_there_are_is_one_line(tmp_path: Path) -> None:
    """A header of a hundred bytes must not cost terabytes."""
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue())
    with pytest.raises(NextscaleError, match=r"claims\.npz: .+ image claims float32 \[1000000000000, 3\]"):
        read_samples(tmp_path / "claims.npz", [IMAGE])
