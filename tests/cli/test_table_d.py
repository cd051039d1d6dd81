"""`nextscale paper table-d`: from a model and photographs to a table, and each refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plans import files, shown_plan
from refusal import assert_refused
from tiny_segmenter import segmenter_samples, write_segmenter

from nextscale.cli.main import main

ALL = ("--score-threshold", "0", "--overlap-threshold", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With model.onnx, samples.npz and photographs, where the command runs."""
    write_segmenter(tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", **segmenter_samples(2))
    (tmp_path / "photographs").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, model: str = "model.onnx", images: str = "photographs") -> int:
    given = ("--model", model, "--calibration", "samples.npz", "--images", images, "--threads", "1", "--rounds", "0")
    return main(["paper", "table-d", *given, *map(str, arguments)])


@pytest.mark.exact_products
def test_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ("--json", "table.json", "--markdown", "table.md")
    assert run("--rows", "fp32,static-w8a8", *ALL, *outputs) == 0
    out = capsys.readouterr().out
    for text in ("Full precision", "static-w8a8", "residual blocks", "agreement, mIoU", "in float"):
        assert text in out, text
    told = json.loads((folder / "table.json").read_text())
    assert [row["name"] for row in told["rows"]] == ["fp32", "static-w8a8"]
    assert told["rows"][1]["agreement"]["photographs"] == 2
    assert told["settings"]["thresholds"] == {"score": 0, "overlap": 0}
    assert "| static-w8a8 | 8/8 |" in (folder / "table.md").read_text()
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "samples.npz", "photographs", "out"),
        *outputs[1::2],
    }


def test_a_plan_tells_what_is_left_and_builds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("--rows", "fp32,static-w8a8", *ALL, "--store", "store")
    before = {path.name for path in folder.iterdir()}
    assert run(*rows, "--plan") == 0
    steps, lines = shown_plan(capsys)
    basis = "full precision's batch"
    assert steps == {"fp32": ("2 photographs", basis), "static-w8a8": ("build, 2 photographs", basis)}
    assert len(lines) == 1
    assert {path.name for path in folder.iterdir()} == before

    assert run("--rows", "fp32,brecq-w4a4", *ALL, "--store", "store", "--plan") == 0
    learned = "and the time to learn the rounding of 1 row, which is not estimated: brecq-w4a4"
    assert shown_plan(capsys)[1][1] == learned

    assert run(*rows) == 0
    kept, _ = files(folder), capsys.readouterr()
    assert run(*rows, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == dict.fromkeys(steps, ("in the store", ""))
    assert lines == ["in all: about 0 s, and 0.0 MB more in the store; estimated"]
    assert run(*rows, "--rounds", 3, "--plan") == 0
    assert shown_plan(capsys)[0] == dict.fromkeys(steps, ("3 timed", basis))
    assert run("--rows", "fp32,static-w8a8", "--store", "store", "--plan") == 0  # other thresholds
    assert shown_plan(capsys)[0] == dict.fromkeys(steps, ("2 photographs", basis))
    assert files(folder) == kept


REFUSED = {
    "a plan with files": (("--plan", "--json", "d.json"), "--plan, which writes nothing, does not go with --json (see"),
    "one round": (("--rounds", "1"), "expected 0, or at least 2"),
    "pictures of no COCO": (("--coco-images", "3"), "a table without --coco does not go with --coco-images"),
    "no COCO": (("--coco", "photographs"), "panoptic_val2017.json: cannot be read"),
    "a share above 1": (("--budget", "2"), "budget"),
    "an output that is read": (("--json", "model.onnx"), "which is read; give another name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[case]
    assert_refused(capsys, run(*arguments), message)


def test_what_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(model="none.onnx"), "none.onnx: no such file; expected an ONNX model")
    assert_refused(capsys, run(images="none"), "none: no such folder; expected photographs")
    np.savez(folder / "samples.npz", pixel_values=np.zeros((1, 3, 32, 32), np.float32))
    assert_refused(capsys, run(), "samples.npz: no array task_inputs; the model's inputs are pixel_values, task_inputs")
