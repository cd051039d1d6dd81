"""`nextscale quantize`: a file in, a file out that runs, and what is said on the way; bad input is one line."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from refusal import assert_refused

from nextscale.cli.main import main
from nextscale.foreign import survey, written_model
from tests.foreign.block_model import LAYERS, block_proto, samples
from tests.foreign.convolution_net import CONVOLUTIONS, net_proto, pictures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(autouse=True)
def no_convolution_is_too_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of these tests is small."""
    monkeypatch.setattr(survey, "LEAST_WORK", 0)


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
    assert run(folder, "--calibration", folder / "samples.npz", "--report", folder / "report.json") == 0
    captured = capsys.readouterr()
    assert "linear layer   7         0" in captured.out
    assert "recipe static-w8a8 leaves it in float" in captured.out
    assert "cost the outputs most" in captured.out
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


def test_a_page_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--calibration", folder / "samples.npz", "--report", folder / "report.HTML") == 0
    page = (folder / "report.HTML").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<h1>model.onnx, quantized</h1>" in page
    assert [f">{name}</td>" in page for name in LAYERS] == [True] * len(LAYERS)


def test_a_program_reads_json_from_stdout(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--calibration", folder / "samples.npz", "--report", "/dev/stdout") == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["recipe"] == "static-w8a8"
    assert "linear layer   7         0" in captured.err
    assert (folder / "int8.onnx").exists()


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_model_that_cannot_be_written_leaves_no_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(written_model, "scratch_folder", full)
    (folder / "old.json").write_text("old")
    before = sorted(folder.iterdir())
    for report in (name, "old.json"):
        arguments = ("--random-calibration", 1, "--report", folder / report)
        assert_refused(capsys, run(folder, *arguments), "int8.onnx: cannot be written")
    assert sorted(folder.iterdir()) == before
    assert (folder / "old.json").read_text() == "old"


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


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A folder with model.onnx of convolutions, whose nodes have names that TOML has to quote, and samples.npz."""
    onnx.save(net_proto(renamed={f"node:{name}": ODD.format(name) for name in CONVOLUTIONS}), tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", **pictures(4))
    return tmp_path


ODD = '/net "1"/é\\{}/Conv'


def test_convolutions_and_what_to_leave(pictured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines that are suggested go into a recipe file as they are, and bring what is said."""
    assert run(pictured, "--calibration", pictured / "samples.npz", "--report", pictured / "report.json") == 0
    out = capsys.readouterr().out
    assert "convolution    5         0" in out
    report = json.loads((pictured / "report.json").read_text())
    said, lines = out.split("with these lines in a recipe file ")[1].split("\n", 1)
    copied = "\n".join(line for line in lines.splitlines() if line.startswith(("[layers]", '"')))
    names = report["suggestion"]["names"]
    assert tomllib.loads(copied) == {"layers": dict.fromkeys(names, "float")}
    assert names[0].startswith('/net "1"/é\\')
    (pictured / "mine.toml").write_text(f'[activations]\ngranularity = "tensor"\n{copied}\n', encoding="utf-8")
    (pictured / "int8.onnx").unlink()
    recipe = ("--recipe", pictured / "mine.toml", "--report", pictured / "report.json")
    assert run(pictured, "--calibration", pictured / "samples.npz", *recipe) == 0
    followed = json.loads((pictured / "report.json").read_text())
    assert {line["name"] for line in followed["lines"] if line["refused"]} == set(names)
    assert f"loses {followed['outputs']['y']['error']['relative']:.2%} in y" in said


@pytest.mark.exact_products
def test_operators_that_are_left(pictured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = []
    for leave in (0, 2, 6):
        (pictured / "int8.onnx").unlink(missing_ok=True)
        options = ("--leave", leave, "--report", pictured / "report.json")
        assert run(pictured, "--calibration", pictured / "samples.npz", *options) == 0
        out = " ".join(capsys.readouterr().out.split())  # a table wraps
        assert "ms with" not in out
        report = json.loads((pictured / "report.json").read_text())
        reasons = [line["refused"] for line in report["lines"] if line["refused"] is not None]
        assert len(reasons) == leave
        assert all(reason.startswith("left in float, as ") and reason in out for reason in reasons)
        lost.append(report["outputs"]["y"]["error"]["relative"])
    assert lost[2] < 1e-6 < lost[1] < lost[0]


BAD: dict[str, tuple[list[str], str]] = {
    "fewer than none": (["--calibration", "{samples}", "--leave", "-1"], "-1 is not in the range x>=0"),
    "a part of one": (["--calibration", "{samples}", "--leave", "0.5"], "'0.5' is not a valid integer"),
    "no samples": ([], "give --calibration, or --random-calibration for speed alone"),
    "both": (["--calibration", "{samples}", "--random-calibration", "3"], "give --calibration, or --random-calib"),
    "no such samples": (["--calibration", "none.npz"], "none.npz: "),
    "no such recipe": (["--calibration", "{samples}", "--recipe", "mine"], 'no recipe is named "mine"'),
    "nothing quantized": (["--calibration", "{samples}", "--recipe", "fp32"], "recipe fp32: quantizes nothing"),
    "one round": (["--calibration", "{samples}", "--rounds", "1"], "1: expected 0, or at least 2"),
    "the samples overwritten": (["--calibration", "{samples}", "--report", "{samples_link}"], "samples.npz, which is"),
    "the recipe overwritten": (
        ["--calibration", "{samples}", "--recipe", "{recipe}", "--report", "{recipe_link}"], "mine.toml, which is read"
    ),
    "another name": (["--calibration", "{samples}", "--out", "x.bin"], "--out x.bin: expected a name that ends in"),
    "another report": (
        ["--calibration", "{samples}", "--report", "report.md"],
        "--report report.md: expected a name that ends in .html or .json",
    ),
    "a report without suffix": (["--calibration", "{samples}", "--report", "html"], "--report html: expected a name"),
    "no folder for it": (["--calibration", "{samples}", "--report", "none/report.html"], "none/report.html"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "mine.toml").write_text("")
    paths = {"samples": folder / "samples.npz", "recipe": folder / "mine.toml"}
    links = {"samples_link": folder / "link.json", "recipe_link": folder / "link.html"}
    for link, path in zip(links.values(), paths.values(), strict=True):
        link.symlink_to(path)
    before = {path: path.read_bytes() for path in paths.values()}
    filled = [argument.format(**paths, **links) for argument in arguments]
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
