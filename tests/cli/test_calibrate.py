from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusal import assert_refused
from tiny_model import L, V

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.cli.main import main
from nextscale.runtime import Bundle

FAST = ("--images", "12", "--batch", "4", "--threads", "1")


def run(*arguments: object) -> int:
    return main(["calibrate", *FAST, *map(str, arguments)])


@pytest.mark.parametrize("matching", ["none", "published", "stagewise"])
def test_token_maps_and_what_was_done(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], matching: str
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "maps"
    assert run(fp32_bundle, "--out", out, "--matching", matching, "--seed", 5, "--top-k", 20, "--top-p", 0.5) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"12 token maps of tiny, matching {matching}" in captured.out
    assert ("wanted tokens reassigned" in captured.out) == (matching != "none")
    assert [path.name for path in out.parent.iterdir()] == ["maps"]
    assert sorted(path.name for path in out.iterdir()) == [
        "frequencies.npz", "manifest.json", "matching.png", "token_maps.npz",
    ]  # fmt: skip
    maps = TokenMaps.load(out, Bundle.open(fp32_bundle).model)
    assert maps.settings["settings"] == {
        "images": 12, "seed": 5, "cfg_scale": 4.0, "top_k": 20, "top_p": 0.5, "batch_size": 4, "matching": matching,
    }  # fmt: skip
    with np.load(out / "frequencies.npz") as arrays:
        assert sorted(arrays) == ["after", "before", "target"]
        assert {array.shape for array in arrays.values()} == {(4, V)}
        np.testing.assert_array_equal(arrays["after"].sum(0), np.bincount(maps.token_maps.ravel(), minlength=V))
    with Image.open(out / "matching.png") as picture:
        assert picture.width == round((5.5 if matching == "none" else 11) * 130)


def test_the_defaults_are_those_of_the_sampler(fp32_bundle: Path, tmp_path: Path) -> None:
    assert run(fp32_bundle, "--out", tmp_path / "maps") == 0
    settings = json.loads((tmp_path / "maps" / "manifest.json").read_text())["settings"]
    assert settings == {
        "images": 12, "seed": 0, "cfg_scale": 4.0, "top_k": V, "top_p": 0.96, "batch_size": 4, "matching": "none",
    }  # fmt: skip


def test_the_score_is_told_and_kept(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fp32_bundle, "--out", tmp_path / "maps", "--score") == 0
    score = json.loads((tmp_path / "maps" / "manifest.json").read_text())["log_probability"]
    assert -np.log(V) * 2 < score < 0
    assert f"mean log-probability of the maps: {score:.3f} nats per token" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    fp32_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.runtime import Generator

    stream, calls = Generator.stream, 0

    def interrupted(self: Generator, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return stream(self, *arguments, **options)

    monkeypatch.setattr(Generator, "stream", interrupted)
    assert run(fp32_bundle, "--out", tmp_path / "maps") == 130
    assert f"{tmp_path / 'maps.partial'}; the same command goes on from there" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["maps.partial"]
    assert run(fp32_bundle, "--out", tmp_path / "maps") == 0
    assert calls == 4
    assert run(fp32_bundle, "--out", tmp_path / "whole") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps", "whole"]
    for name in ("manifest.json", "token_maps.npz", "frequencies.npz"):
        assert (tmp_path / "maps" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_without_matplotlib_only_the_plot_is_missing(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(fp32_bundle, "--out", tmp_path / "maps") == 0
    assert capsys.readouterr().err == 'no matching.png: it needs matplotlib, pip install "nextscale[eval]"\n'
    assert not (tmp_path / "maps" / "matching.png").exists()
    with np.load(tmp_path / "maps" / "token_maps.npz") as arrays:
        assert arrays["token_maps"].shape == (12, L)


def test_a_quantized_bundle_is_refused(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(int8_bundle, "--out", tmp_path / "maps"), "give a bundle built with --precision fp32")
    assert not list(tmp_path.iterdir())


def test_what_exists_is_refused(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(fp32_bundle, "--out", tmp_path), f"{tmp_path}: exists already")


def test_partial_work_of_other_settings_is_refused(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps.partial").mkdir()
    (tmp_path / "maps.partial" / "settings.json").write_text("{}")
    code = run(fp32_bundle, "--out", tmp_path / "maps")
    assert_refused(capsys, code, "maps.partial: was begun with bundle.name unset instead of tiny, ")


BAD_USAGE = {
    "no out": ([], "Missing option '--out'"),
    "images": (["--images", "0", "--out", "maps"], "0 is not in the range"),
    "batch": (["--batch", "0", "--out", "maps"], "0 is not in the range"),
    "seed": (["--seed", "-1", "--out", "maps"], "-1 is not in the range"),
    "matching": (["--matching", "best", "--out", "maps"], "'best' is not one of"),
    "top_k": (["--top-k", "129", "--out", "maps"], "top_k 129 is out of range"),
    "top_p": (["--top-p", "2", "--out", "maps"], "top_p 2 is out of range"),
    "cfg": (["--cfg-scale", "nan", "--out", "maps"], "cfg_scale nan is out of range"),
    "out": (["--out", "/proc/none/maps"], "maps.partial: cannot be made"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    fp32_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    usage: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, run(fp32_bundle, *usage), message)
    assert not list(tmp_path.iterdir())


def test_a_missing_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(tmp_path / "none", "--out", tmp_path / "maps"), "none: no such folder")
