"""`nextscale paper table-b` on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_network import PixelNetwork
from plans import files, shown_plan
from refusal import assert_refused
from tiny_model import rounded_down, tiny_preset, tiny_source

from nextscale.cli.main import main
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.image_statistics import Gaussian
from nextscale.evaluate.reference_statistics import Reference
from nextscale.models.var import presets
from nextscale.paper import _table_b_quality, table_b
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.reconstruction_settings import ReconstructionSettings

PICTURES = ("--images", 6, "--compared", 2, "--batch", 3, "--calibration-images", 2, "--ops", "stock")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is the tiny model with one block, and pixels are the features."""
    monkeypatch.setattr(
        "nextscale.models.var.sources.demo_source", lambda name: replace(tiny_source(depth=1), name=name)
    )
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", PixelNetwork)
    monkeypatch.setattr("nextscale.cli.judging_options.read_demo_reference", lambda: reference(6))
    monkeypatch.setattr(_table_b_quality, "SCORE_IMAGES", 3)
    monkeypatch.setattr("nextscale.cli.table_b.SCORE_IMAGES", 3)


def reference(features: int) -> Reference:
    return Reference(Gaussian(np.zeros(features), np.eye(features)), "", 8, 100)


def run(store: Path, *arguments: object) -> int:
    return main(["paper", "table-b", *map(str, (*arguments, "--threads", 1, "--store", store))])


def document(store: Path, *arguments: object) -> dict[str, Any]:
    path = store.parent / "table.json"
    assert run(store, *arguments, "--json", path) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def numbers(table: dict[str, Any]) -> list[float]:
    """Ours of all rows; NaN for none."""
    return [np.nan if cell["value"] is None else cell["value"] for row in table["rows"] for cell in row["cells"]]


def test_the_costs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "table.md"
    found = document(tmp_path / "store", "--images", 0, "--markdown", page)
    captured = capsys.readouterr()
    assert captured.err == "attention of 3 images to observe, 1 bundle to build: about 11 s on two cores\n"
    assert found["quality"] is None
    assert found["left_out"] == []
    rows = {row["name"]: [cell["paper"] for cell in row["cells"]] for row in found["costs"]["rows"]}
    assert rows["duplicate"] == [23.21e6, 0.28e9, 9.58e6, 0.13e9, 3.94e6, 0.06e9]
    assert rows["total-residual"] == [None] * 6
    assert found["costs"]["settings"]["images"] == 3
    assert "| Eq. 13 | 4/6 |" in page.read_text()
    assert "Duplicate" in captured.out
    again = document(tmp_path / "store", "--images", 0)
    assert again["costs"]["rows"] == found["costs"]["rows"]
    assert capsys.readouterr().err.startswith("attention of 0 images to observe, 0 bundles")


def test_pictures_of_each_theta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision, another seed of it, and rows of which two have no learned rounding."""
    roundings, page = tmp_path / "roundings", tmp_path / "table.md"
    for theta in ("theta-0.1", "theta-0.2"):
        (roundings / theta).mkdir(parents=True)
        rounding = rounded_down(paper_recipe("shift-and-sum-w4a6"), tiny_source(depth=1))
        rounding.save(roundings / theta / "shift-and-sum-w4a6.safetensors")
    arguments = (*PICTURES, "--roundings", roundings)
    found = document(tmp_path / "store", *arguments, "--markdown", page)
    quality = found["quality"]
    assert [row["name"] for row in quality["rows"]] == ["fp32", "noise floor", "theta-0.1", "theta-0.2"]
    papers = [[cell["paper"] for cell in row["cells"][:3]] for row in quality["rows"]]
    assert papers == [[None] * 3, [None] * 3, [155.2, 10.25, 9.57], [154.3, 10.33, 9.71]]
    assert [column["name"] for column in quality["columns"]][:2] == ["IS-E", "FID-E"]
    assert [line.split(":")[0] for line in quality["left_out"]] == ["Baseline (BRECQ)", "Shift-and-sum, theta 0.05"]
    assert quality["left_out"][1].endswith(f"there is no {roundings / 'shift-and-sum-w4a6.safetensors'}")
    first, second = (row["cells"][3]["value"] for row in quality["rows"][2:])
    assert first != second  # two bundles
    text = page.read_text()
    assert text.index("# Table B(a)") < text.index("# Table B(b)")

    def stop(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("nextscale.paper.recipe_bundles.build_bundle", stop)
    again = document(tmp_path / "store", *arguments)
    # Of statistics in a file, whose covariance is symmetric to the last bit.
    assert numbers(again["quality"]) == pytest.approx(numbers(quality), rel=1e-6, nan_ok=True)


def test_a_plan_tells_what_is_left_and_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bundles of a theta are known once attention was observed."""
    store, roundings = tmp_path / "store", tmp_path / "roundings"
    (roundings / "theta-0.2").mkdir(parents=True)
    rounding = rounded_down(paper_recipe("shift-and-sum-w4a6"), tiny_source(depth=1))
    rounding.save(roundings / "theta-0.2" / "shift-and-sum-w4a6.safetensors")
    attention, arguments = "attention of full precision", (*PICTURES, "--roundings", roundings)
    assert run(store, *arguments, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": ("build, 6 pictures", "operations"),
        attention: ("3 observed", "operations"),
        "noise floor": ("6 pictures", "operations"),
        "theta-0.2": ("build, 6 pictures, 2 compared", "operations"),
    }
    assert lines[0].startswith("in all: about 31 s, and ")  # 10 and 20, and the images' operations
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "Baseline (BRECQ)",
        *(f"Shift-and-sum, theta {theta:g}" for theta in (0.05, 0.1)),
    ]
    assert not store.exists()

    assert run(store, *arguments) == 0
    before, _ = files(store), capsys.readouterr()
    assert run(store, *arguments, "--plan") == 0
    assert shown_plan(capsys)[0] == dict.fromkeys(steps, ("in the store", ""))
    assert run(store, *arguments, "--seed", 5, "--plan") == 0
    assert shown_plan(capsys)[0] == {
        "fp32": ("6 pictures", "its own batch"),
        attention: ("3 observed", "operations"),
        "noise floor": ("6 pictures", "its own batch"),
        "theta-0.2": ("build, 6 pictures, 2 compared", "full precision's batch"),
    }
    assert run(store, "--images", 0, "--plan") == 0
    assert shown_plan(capsys)[0] == {"fp32": ("in the store", ""), attention: ("in the store", "")}
    assert files(store) == before


def test_a_plan_takes_no_other_tables_bundle_for_a_theta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 4's is of the same recipe, with a theta of its own."""
    store, roundings = tmp_path / "store", tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(paper_recipe("shift-and-sum-w4a6"), tiny_source(depth=1)).save(
        roundings / "shift-and-sum-w4a6.safetensors"
    )
    shared = ("--roundings", roundings, "--store", store, "--threads", 1, *PICTURES)
    assert main(["paper", "table-4", "--rows", "fp32,shift-and-sum-w4a6", *map(str, shared)]) == 0
    capsys.readouterr()
    assert run(store, *PICTURES, "--roundings", roundings, "--plan") == 0
    steps, _ = shown_plan(capsys)
    assert [left for name, (left, _) in steps.items() if name.startswith("theta")] == [
        "build, 6 pictures, 2 compared"
    ] * 3


def test_rounding_is_learned_with_each_theta(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def learn_bundle(source: object, out: Path, options: BuildOptions, *further: object) -> None:
        calls.append((options.recipe.name, options.theta and options.theta.theta, *further[:2]))
        raise NextscaleError("far enough")

    monkeypatch.setattr("nextscale.paper.recipe_bundles.learn_bundle", learn_bundle)
    found = document(tmp_path / "store", *PICTURES, "--learn", "--iterations", 7, "--learning-batch", 3)
    settings = ReconstructionSettings(iterations=7, batch_size=3)
    assert calls == [
        ("brecq-w4a6", None, settings, "cpu"),
        *[("shift-and-sum-w4a6", theta, settings, "cpu") for theta in table_b.THETAS],
    ]
    assert [line.rpartition(": ")[2] for line in found["left_out"]] == ["far enough"] * 4
    assert capsys.readouterr().err.endswith(" on two cores, and learning\n")


def test_without_rounding_there_are_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(tmp_path / "store", *PICTURES)
    assert found["quality"] is None
    assert len(found["left_out"]) == 4
    assert "left out of B(b): Baseline (BRECQ): brecq-w4a6: its weights are learned" in capsys.readouterr().out


def test_a_model_of_the_papers_size_goes_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset with random weights, whose blocks are few: rounded to nearest, and with the demo model's attention."""
    monkeypatch.setitem(presets.PRESETS, "var-d16", tiny_preset(depth=1))
    quality = replace(_table_b_quality.QUALITY, paper={1: _table_b_quality.PAPER})
    monkeypatch.setattr("nextscale.cli.table_b.QUALITY", quality)
    monkeypatch.setattr("nextscale.cli.table_b.METHODS", {"theta-0.2": "theta 0.2"})
    found = document(tmp_path / "store", "--preset", "var-d16", "--random-weights", *PICTURES, "--reference", "none")
    assert found["costs"]["model"] == "var-d16"
    assert found["costs"]["settings"]["lent"]
    assert [row["name"] for row in found["quality"]["rows"]][2:] == ["theta-0.2"]
    assert found["quality"]["notes"][-2:] == [
        "weights are rounded to nearest",
        "the weights are random: the figures tell nothing but what they take",
    ]


REFUSED = {
    "one picture": (("--images", 1), "1 picture has no variance: expected 0, or at least 2"),
    "no pictures, but how": (("--images", 0, "--batch", 4), "--images 0, without pictures, does not go with --batch"),
    "no pictures, but rounding": (("--images", 0, "--roundings", "."), "does not go with --roundings"),
    "half a model": (("--vae", "x.pth"), "Give --var and --vae, or neither for the demo model"),
    "random without preset": (("--random-weights",), "--random-weights needs --preset"),
    "top_k": ((*PICTURES, "--top-k", 4000), "top_k 4000 is out of range: expected 0 to 128"),
    "top_p": ((*PICTURES, "--top-p", 2), "top_p 2 is out of range: expected 0 to 1"),
    "iterations": (("--iterations", 3), "a table without --learn does not go with --iterations"),
    "random and learned": (("--preset", "var-d16", "--random-weights", "--learn"), "which cannot be learned"),
    "reference": (("--reference", "nothing.npz"), "nothing.npz"),
    "a plan with files": (("--plan", "--json", "b.json"), "--plan, which writes nothing, does not go with --json (see"),
    "unwritable": (("--json", "/proc/table.json"), "cannot write /proc/table.json"),
    "Inception": (("--inception-weights", "nothing.pth"), "'nothing.pth' does not exist"),
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
    code = run(tmp_path / "store", "--preset", "tiny", "--random-weights", "--images", 0)
    assert_refused(
        capsys, code, "the model has 2 blocks of 64; Table B(b) is of VAR-d16 (16 blocks of 1024), or of the"
    )


def test_statistics_of_another_network_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.cli.judging_options.read_demo_reference", lambda: reference(3))
    assert_refused(capsys, run(tmp_path / "store", *PICTURES), "the reference has 3 features, but pixels gives 6")


def test_the_papers_thetas_are_those_of_the_command_theta() -> None:
    assert table_b.THETAS == (0.05, 0.1, 0.2)
