from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from refusal import assert_refused
from tiny_model import build_tiny, tiny_source

from nextscale.cli.main import main
from nextscale.evaluate import attention_error
from nextscale.evaluate.attention_error import observed_bytes
from nextscale.evaluate.teacher_forced import KL_IN_WORDS
from nextscale.runtime import Bundle

FAST = ("--images", "3", "--batch", "2", "--threads", "1")


def run(*arguments: object) -> int:
    return main(["evaluate", *map(str, (*arguments, *FAST))])


def test_figures_of_each_bundle(
    fp32_bundle: Path, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert run(fp32_bundle, int8_bundle, fp32_bundle, "--json", path, "--seed", 5, "--cfg-scale", 2) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "0.0000 ± 0.0000" in captured.out
    assert "100.0%" in captured.out
    assert captured.out.endswith(f"{KL_IN_WORDS}\n")
    figures = json.loads(path.read_text())
    assert (figures["reference"], figures["seed"], figures["cfg_scale"]) == (str(fp32_bundle), 5, 2.0)
    int8, same = (figures["bundles"][str(bundle)] for bundle in (int8_bundle, fp32_bundle))
    assert same == {
        "kl": 0, "kl_stderr": 0, "top1": 1, "stage_kl": [0] * 4, "stage_top1": [1] * 4, "images": 3,
    }  # fmt: skip
    assert 0 < int8["kl"] < 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_the_error_of_attention_is_measured_on_request(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert run(fp32_bundle, fp32_bundle, "--attention-error", 2, "--json", path) == 0
    captured = capsys.readouterr()
    assert "error of A V" in captured.out
    assert "0.00%" in captured.out
    found = json.loads(path.read_text())["bundles"][str(fp32_bundle)]["attention_error"]
    assert found["images"] == 2
    assert all(figure < 1e-6 for stage in found["relative"] for figure in stage)


def test_attention_that_is_too_large_is_refused(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_error, "MOST_OBSERVED", observed_bytes(Bundle.open(fp32_bundle).model) - 1)
    message = "of however few images; expected at most 0 GB: leave it out"
    assert_refused(capsys, run(fp32_bundle, fp32_bundle, "--attention-error", 2), message)


def test_one_image_has_no_standard_error(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["evaluate", str(fp32_bundle), str(fp32_bundle), "--images", "1", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "0.0000" in out
    assert "±" not in out
    assert "nan" not in out
    assert json.loads(path.read_text())["bundles"][str(fp32_bundle)]["kl_stderr"] is None


def test_bundles_of_different_models_are_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_tiny(tmp_path / "other", "fp32", tiny_source(depth=1))
    assert_refused(capsys, run(fp32_bundle, other), f"{other}: not the model of {fp32_bundle}")


def test_a_quantized_reference_is_refused(
    fp32_bundle: Path, int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = ", but bundles are compared with full precision: give one built with --precision fp32 first"
    assert_refused(capsys, run(int8_bundle, fp32_bundle), message)


@pytest.mark.parametrize("position", [0, 1])
def test_a_missing_bundle_is_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], position: int
) -> None:
    bundles = [fp32_bundle, fp32_bundle]
    bundles[position] = tmp_path / "none"
    assert_refused(capsys, run(*bundles), "none: no such folder")


def test_a_damaged_bundle_is_refused(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(fp32_bundle, tmp_path / "damaged")
    (damaged / "stage.onnx").write_bytes(b"")
    assert_refused(capsys, run(fp32_bundle, damaged), "stage.onnx: 0 bytes, but the manifest says")


BAD_USAGE = {
    "no candidate": ([], "Missing argument 'BUNDLES...'"),
    "images": (["--images", "0"], "0 is not in the range"),
    "attention": (["--attention-error", "0"], "0 is not in the range"),
    "attention of more images": (["--attention-error", "4"], "--attention-error 4: expected at most --images, 3"),
    "seed": (["--seed", "-1"], "-1 is not in the range"),
    "batch": (["--batch", "0"], "0 is not in the range"),
    "cfg": (["--cfg-scale", "-1"], "cfg_scale -1 is out of range"),
    "cfg NaN": (["--cfg-scale", "nan"], "cfg_scale nan is out of range"),
    "json": (["--json", "/proc/figures.json"], "cannot write /proc/figures.json"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    bundles = [str(fp32_bundle)] * (1 if not usage else 2)
    assert_refused(capsys, main(["evaluate", *bundles, *FAST, *usage]), message)
