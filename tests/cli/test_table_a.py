"""`nextscale paper table-a` on the tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import files, shown_plan
from refusal import assert_refused
from tiny_model import tiny_preset, tiny_source

from nextscale.cli.main import main
from nextscale.models.var import presets
from nextscale.paper import table_a


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is the tiny model with one block."""
    monkeypatch.setattr(
        "nextscale.models.var.sources.demo_source", lambda name: replace(tiny_source(depth=1), name=name)
    )


def run(store: Path, *arguments: object) -> int:
    fast = ("--threads", 1, "--images", 2, "--calibration-images", 2)
    return main(["paper", "table-a", *map(str, (*fast, *arguments, "--store", store))])


def document(store: Path, *arguments: object) -> dict[str, Any]:
    path = store.parent / "table.json"
    assert run(store, *arguments, "--json", path) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_rows_are_built_observed_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    page, plot = tmp_path / "table.md", tmp_path / "plot.png"
    tight = tmp_path / "tight.toml"  # less than its scores cost
    tight.write_text(
        '[attention]\nproducts = "integer"\nweights = "row"\nshift_and_sum = "residual"\nbudget = 0.00001\n'
    )
    rows = ("--rows", f"a8-log2,{tight},brecq-w4a6")
    found = document(tmp_path / "store", *rows, "--markdown", page, "--plot", plot, "--seed", 4)
    captured = capsys.readouterr()
    told = r"3 bundles to build, attention of 4 images to observe: about 51 s on two cores\n"
    assert re.fullmatch(told, captured.err)
    assert "log2 weights" in captured.out
    assert "Relative error of A V, by stage" in captured.out
    assert "two parts' squares" not in captured.out
    table = found["correlations"]
    assert (table["table"], table["model"], table["settings"]["seed"]) == ("A", "demo", 4)
    assert [row["name"] for row in table["rows"]] == ["a8-log2"]
    assert [line[:20] for line in table["left_out"]] == ["tight: a budget of 0", "brecq-w4a6: its weig"]
    assert "The two parts' squares" in page.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")

    # Again: nothing is built or observed, and the figures are the same.
    def stop(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("nextscale.paper._observed_attention.attention_errors", stop)
    monkeypatch.setattr("nextscale.paper._observed_attention.sample", stop)
    monkeypatch.setattr("nextscale.paper.recipe_bundles.build_bundle", stop)
    again = document(tmp_path / "store", "--rows", "a8-log2", "--seed", 4)
    assert again["attention"] == found["attention"]
    assert capsys.readouterr().err.startswith("0 bundles to build, attention of 0 images to observe")


def test_a_plan_tells_what_is_left_and_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, rows = tmp_path / "store", ("--rows", "a8-log2,brecq-w4a6")
    assert run(store, *rows, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == {"fp32": ("build, 2 token maps", "operations"), "a8-log2": ("build, 2 observed", "operations")}
    assert lines[0].startswith("in all: about 31 s, and ")  # 10 and 20, and the images' operations
    assert lines[1].startswith("left out: brecq-w4a6: its weights are learned")
    assert not store.exists()
    assert run(store, *rows) == 0
    before, _ = files(store), capsys.readouterr()
    assert run(store, *rows, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == {"fp32": ("in the store", ""), "a8-log2": ("in the store", "")}
    assert lines[0] == "in all: about 0 s, and 0.0 MB more in the store; estimated"
    assert run(store, *rows, "--seed", 4, "--plan") == 0
    steps, _ = shown_plan(capsys)
    assert steps == {"fp32": ("2 token maps", "operations"), "a8-log2": ("2 observed", "operations")}
    assert files(store) == before


def test_a_model_of_the_papers_size_goes_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset with random weights, whose blocks are few: only their number and width decide."""
    monkeypatch.setitem(presets.PRESETS, "var-d30", tiny_preset(depth=1))
    monkeypatch.setattr(table_a, "DEPTH", 1)
    arguments = ("--preset", "var-d30", "--random-weights", "--rows", "a6-row")
    found = document(tmp_path / "store", *arguments)["correlations"]
    assert found["model"] == "var-d30"
    assert [row["method"] for row in found["rows"]] == ["row-scaled weights"]
    assert found["notes"][-1].startswith("the weights are random")


REFUSED = {
    "no such row": (("--rows", "nothing"), 'no recipe is named "nothing"'),
    "twice": (("--rows", "a8-row,a8-row"), "has a recipe twice"),
    "in float": (
        ("--rows", "a8-row,default"),
        "recipe default: attention is in float, which has no quantization noise",
    ),
    "full precision": (("--rows", "fp32"), "recipe fp32: attention is in float"),
    "no images": (("--images", 0), "0 is not in the range"),
    "guidance": (("--cfg-scale", "nan"), "cfg_scale nan is out of range"),
    "half a model": (("--var", "x.pth"), "Give --var and --vae, or neither for the demo model"),
    "no such checkpoint": (("--var", "x.pth", "--vae", "y.pth"), "x.pth"),
    "unwritable": (("--json", "/proc/table.json"), "cannot write /proc/table.json"),
    "plot as PDF": (("--plot", "plot.pdf"), "the plot is written as PNG; give a name that ends in .png"),
    "a plan with files": (
        ("--plan", "--plot", "plot.png"),
        "--plan, which writes nothing, does not go with --plot (see",
    ),
    "roundings": (("--roundings", "nowhere"), "'nowhere' does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[case]
    assert_refused(capsys, run(tmp_path / "store", *arguments), message)
    assert not (tmp_path / "store").exists()


def test_a_model_of_another_size_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny_preset())
    code = run(tmp_path / "store", "--preset", "tiny", "--random-weights")
    assert_refused(
        capsys, code, "the model has 2 blocks of 64; Table A is of VAR-d30 (30 blocks of 1920), or of the demo"
    )
    assert not (tmp_path / "store").exists()
