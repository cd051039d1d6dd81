from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from refusal import assert_refused

from nextscale.cli.main import main

FAST = ("--images", "3", "--threads", "1")


def run(*arguments: object) -> int:
    return main(["theta", *map(str, (*arguments, *FAST))])


def test_figures_and_plot(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    assert run(fp32_bundle, "--budget", "5%", "--bits", "8/8", "--json", figures, "--plot", plot) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("tiny at 8/8 bits")
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(figures.read_text())
    assert (report["bundle"], report["images"], report["seed"]) == (str(fp32_bundle), 3, 0)
    assert report["bits"] == {"weights": 8, "activations": 8}
    assert [choice["form"] for choice in report["choices"]] == ["duplicate", "residual"]
    for choice in report["choices"]:
        assert choice["extra_share"] <= choice["budget"] == 0.05
        assert len(choice["rows"]) == 4
        thetas = sorted({0.05, 0.1, 0.2, choice["theta"]})
        assert [row["theta"] for row in report["overheads"] if row["form"] == choice["form"]] == thetas
        assert f"theta {choice['theta']:g} costs" in captured.out
    assert all(len(stages) == 4 and stages[0] == 1 for stages in report["attentive_shares"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "plot.png"]


def test_a_larger_budget_affords_a_smaller_theta(fp32_bundle: Path, tmp_path: Path) -> None:
    chosen = []
    for i, budget in enumerate(("4%", "20%")):
        assert run(fp32_bundle, "--budget", budget, "--json", tmp_path / f"{i}.json") == 0
        chosen.append(json.loads((tmp_path / f"{i}.json").read_text())["choices"][0]["theta"])
    assert np.diff(chosen) < 0


def test_an_integer_bundle_is_refused(int8_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(int8_bundle), f"{int8_bundle}: recipe default, but theta is chosen from full precision")


def test_a_plot_needs_matplotlib(
    fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.cli.theta.importlib.util.find_spec", lambda name: None)
    assert_refused(capsys, run(fp32_bundle, "--plot", tmp_path / "plot.png"), 'pip install "nextscale[eval]"')


BAD_USAGE = {
    "budget without %": (["--budget", "1"], "'1' is not a percentage"),
    "budget of no number": (["--budget", "one%"], "'one%' is not a percentage"),
    "budget of nothing": (["--budget", "0%"], "'0%' is not a percentage"),
    "budget over all": (["--budget", "101%"], "'101%' is not a percentage"),
    "budget NaN": (["--budget", "nan%"], "'nan%' is not a percentage"),
    "budget below Eq. 11": (["--budget", "0.001%"], "the scores alone (Eq. 11) cost"),
    "bits": (["--bits", "8"], "'8' is not bits of weights and activations"),
    "no bits": (["--bits", "0/8"], "'0/8' is not bits of weights and activations"),
    "images": (["--images", "0"], "0 is not in the range"),
    "json": (["--json", "/proc/figures.json"], "cannot write /proc/figures.json"),
    "plot": (["--plot", "/proc/plot.png"], "cannot write /proc/plot.png"),
    "plot as PDF": (["--plot", "plot.pdf"], "--plot plot.pdf: the plot is written as PNG; give a name that ends in"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    fp32_bundle: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    assert_refused(capsys, main(["theta", str(fp32_bundle), *FAST, *usage]), message)


def test_a_missing_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, run(tmp_path / "none"), "none: no such folder")
