"""`nextscale quantize`: a file in, a file out that runs, and what is said on the way; bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from refusal import assert_refused

from nextscale.cli.main import main
from tests.foreign.block_model import LAYERS, block_proto, samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With model.onnx and samples.npz."""
    onnx.save(block_proto(), tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", **samples())
    return tmp_path


def run(folder: Path, *arguments: object, model: str = "model.onnx") -> int:
    options = ("--threads", 1, "--rounds", 0, "--out", folder / "int8.onnx")
    return main(["quantize", *map(str, (folder / model, *options, *arguments))])


def test_a_file_in_a_file_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--calibration", folder / "samples.npz", "--json", folder / "report.json") == 0
    captured = capsys.readouterr()
    assert "linear layer   7         0" in captured.out
    assert "recipe static-w8a8 leaves it in float" in captured.out
    assert f"{folder / 'int8.onnx'}: static-w8a8, " in captured.out + captured.err
    given = samples(2, seed=9)
    exact, found = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, given)[0]
        for name in ("model.onnx", "int8.onnx")
    )
    assert 0 < np.abs(found - exact).max() < 0.2
    report = json.loads((folder / "report.json").read_text())
    assert [line["name"] for line in report["lines"] if line["is_integer"]] == LAYERS
    assert sorted(path.name for path in folder.iterdir()) == [
        "int8.onnx",
        "model.onnx",
        "report.json",
        "samples.npz",
    ]


def test_random_samples_have_to_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--random-calibration", 3) == 0
    assert "calibrated on 3 of random numbers" in capsys.readouterr().out


def test_times_of_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--calibration", folder / "samples.npz", "--rounds", 2) == 0
    assert "ms with 1 threads, " in capsys.readouterr().out


def test_an_own_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "mine.toml"
    recipe.write_text('[activations]\ngranularity = "token"\n[layers]\n"y" = "float"\n')
    assert run(folder, "--calibration", folder / "samples.npz", "--recipe", recipe) == 0
    out = capsys.readouterr().out
    assert "linear layer   6         1      recipe mine leaves it in float" in out


BAD: dict[str, tuple[list[str], str]] = {
    "no samples": ([], "give --calibration, or --random-calibration for speed alone"),
    "both": (["--calibration", "{samples}", "--random-calibration", "3"], "give --calibration, or --random-calib"),
    "no such samples": (["--calibration", "none.npz"], "none.npz: "),
    "no such recipe": (["--calibration", "{samples}", "--recipe", "mine"], 'no recipe is named "mine"'),
    "nothing quantized": (["--calibration", "{samples}", "--recipe", "fp32"], "recipe fp32: quantizes nothing"),
    "one round": (["--calibration", "{samples}", "--rounds", "1"], "1: expected 0, or at least 2"),
    "the samples overwritten": (["--calibration", "{samples}", "--json", "{samples}"], "samples.npz"),
    "the recipe overwritten": (
        ["--calibration", "{samples}", "--recipe", "{recipe}", "--json", "{recipe}"], "mine.toml"
    ),
    "another name": (["--calibration", "{samples}", "--out", "x.bin"], "--out x.bin: expected a name that ends in"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "mine.toml").write_text("")
    paths = {"samples": folder / "samples.npz", "recipe": folder / "mine.toml"}
    before = {path: path.read_bytes() for path in paths.values()}
    filled = [argument.format(**paths) for argument in arguments]
    assert_refused(capsys, run(folder, *filled), message)
    assert not (folder / "int8.onnx").exists()
    assert {path: path.read_bytes() for path in paths.values()} == before


@pytest.mark.parametrize(("name", "content"), [("none.onnx", None), ("bad.onnx", b"no model"), ("empty.onnx", b"")])
def test_a_bad_model_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    assert_refused(capsys, run(folder, "--random-calibration", 1, model=name), name)


def test_an_existing_file_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "int8.onnx").write_bytes(b"mine")
    assert_refused(capsys, run(folder, "--random-calibration", 1), "exists already")
    assert (folder / "int8.onnx").read_bytes() == b"mine"


def test_a_model_that_needs_another_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "other.npz", z=samples()["x"])
    assert_refused(capsys, run(folder, "--calibration", folder / "other.npz"), "no array x; the model's inputs are x")
