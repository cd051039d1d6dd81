"""`nextscale paper table-1` and `table-4` on the tiny model; the tables are built of it as of the demo model."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_network import PixelNetwork
from plans import files, shown_plan
from refusal import assert_refused
from tiny_model import rounded_down, tiny_preset, tiny_source

from nextscale.cli.main import main
from nextscale.evaluate.image_statistics import Gaussian
from nextscale.evaluate.reference_statistics import Reference
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var import presets
from nextscale.paper.table_1 import PAPER
from nextscale.simulation.rounding import Rounding


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is the tiny model, and pixels are the features."""
    monkeypatch.setattr("nextscale.models.var.sources.demo_source", lambda name: tiny_source())
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", PixelNetwork)
    monkeypatch.setattr("nextscale.cli.judging_options.read_demo_reference", lambda: reference())


def reference(features: int | None = None, side: int | None = 8) -> Reference:
    width = features or PixelNetwork()(np.zeros((1, 8, 8, 3), np.uint8)).pooled.shape[1]
    return Reference(Gaussian(np.zeros(width), np.eye(width)), "", side, 100)


def run(store: Path, *arguments: object, table: str = "table-1") -> int:
    fast = ("--threads", 1, "--images", 6, "--compared", 3, "--batch", 3, "--calibration-images", 2)
    fast += () if "--simulated" in arguments else ("--ops", "stock")
    fixed = [] if "--quick" in arguments else fast
    return main(["paper", table, *map(str, (*arguments, "--store", store, *fixed))])


def document(store: Path, *arguments: object, **options: Any) -> dict[str, Any]:
    path = store.parent / "table.json"
    assert run(store, *arguments, "--json", path, **options) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def figures(document: dict[str, Any]) -> list[float]:
    """Of all cells, in order."""
    cells = [cell for row in document["rows"] for cell in row["cells"]]
    return [math.nan if cell[end] is None else cell[end] for cell in cells for end in ("value", "low", "high")]


def test_rows_have_the_papers_figures_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roundings, page = tmp_path / "roundings", tmp_path / "table.md"
    roundings.mkdir()
    rounded_down(load_recipe("brecq-w4a6")).save(roundings / "brecq-w4a6.safetensors")
    rows = ("--rows", "default,brecq-w4a6,litevar-w4a6,fp32", "--roundings", roundings)
    found = document(tmp_path / "store", *rows, "--markdown", page)
    assert [row["name"] for row in found["rows"]] == ["fp32", "noise floor", "default", "brecq-w4a6"]
    assert [row["bits"] for row in found["rows"]] == ["32/32", "32/32", "8/8", "4/6"]
    assert [column["name"] for column in found["columns"]][:3] == ["IS-E", "FID-E", "FID-E to full precision"]
    papers = [[cell["paper"] for cell in row["cells"]] for row in found["rows"]]
    assert papers == [
        [274.8, 3.41, None, None, None],
        [None] * 5,
        [None] * 5,
        [145.6, 11.16, 10.57, None, None],  # Table 1, VAR-d16, BRECQ at 4/6
    ]
    full, floor, default, brecq = ([cell["value"] for cell in row["cells"]] for row in found["rows"])
    assert full[2:] == [None] * 3  # full precision is not compared with itself
    assert floor[3:] == [None] * 2
    assert floor[2] > 0
    assert default[3] > 0
    assert brecq[3] > default[3]
    missing = roundings / "litevar-w4a6.safetensors"
    assert found["left_out"] == [f"litevar-w4a6: its weights are learned, and there is no {missing}"]
    text = page.read_text()
    assert "IS-E and FID-E are of another network, or other weights, than IS and FID" in text
    assert "| BRECQ | 4/6 |" in text
    assert "another model: compare differences between rows" in text
    assert "4 rows: about" in capsys.readouterr().err
    # Again: nothing is built or drawn, and the figures are the same.
    again = document(tmp_path / "store", *rows)
    assert figures(again) == pytest.approx(figures(found), rel=1e-9, nan_ok=True)


def test_several_seeds_give_intervals(tmp_path: Path) -> None:
    found = document(tmp_path / "store", "--rows", "fp32,default", "--seed", 0, "--seed", 1)
    score, fid, *_ = found["rows"][2]["cells"]
    assert fid["low"] < fid["value"] < fid["high"]
    assert score["low"] < score["value"] < score["high"]
    assert found["settings"]["seeds"] == [0, 1]


def test_table_4_names_the_parts(tmp_path: Path) -> None:
    roundings = tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(load_recipe("brecq-w4a6")).save(roundings / "resample-w4a6.safetensors")
    found = document(
        tmp_path / "store", "--rows", "fp32,brecq-w4a6,resample-w4a6", "--roundings", roundings, table="table-4"
    )
    assert found["table"] == "4"
    assert [row["method"] for row in found["rows"]][2:] == ["resampled calibration"]
    assert [cell["paper"] for cell in found["rows"][2]["cells"]][:3] == [152.8, 10.19, 9.74]
    assert found["left_out"][0].startswith("brecq-w4a6: its weights are learned")


def test_simulated_rows_are_told_so_and_gone_on_with(tmp_path: Path) -> None:
    roundings = tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(load_recipe("brecq-w4a6")).save(roundings / "brecq-w4a6.safetensors")
    rows = ("--rows", "fp32,default,brecq-w4a6,ours-w4a6", "--roundings", roundings)
    found = document(tmp_path / "store", *rows, "--simulated")
    built = document(tmp_path / "store", *rows)
    assert any(note.startswith("simulated in torch") for note in found["notes"])
    assert not any("simulated" in note for note in built["notes"])
    assert [row["name"] for row in found["rows"]] == ["fp32", "noise floor", "default", "brecq-w4a6"]
    assert found["left_out"] == built["left_out"]
    for ours, of_bundle in zip(found["rows"], built["rows"], strict=True):
        assert ours["bits"] == of_bundle["bits"]
        if ours["cells"][3]["value"] is not None:  # the KL: both see the same token maps
            assert ours["cells"][3]["value"] == pytest.approx(of_bundle["cells"][3]["value"], rel=0.3)
    again = document(tmp_path / "store", *rows, "--simulated")
    assert figures(again) == pytest.approx(figures(found), rel=1e-9, nan_ok=True)


def test_simulated_rows_are_read_in_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names, seen = ("brecq-w4a6", "litevar-w4a6", "brecq-w4a4"), list[weakref.ref[object]]()
    for name in names:
        rounded_down(load_recipe(name)).save(tmp_path / f"{name}.safetensors")

    def counted(load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(*arguments: object) -> Any:
            gc.collect()
            assert not [None for one in seen if one() is not None]
            found = load(*arguments)
            seen.append(weakref.ref(found))
            return found

        return loaded

    monkeypatch.setattr(Rounding, "load", counted(Rounding.load))
    rows = ("--rows", f"fp32,{','.join(names)}", "--roundings", tmp_path, "--simulated")
    assert run(tmp_path / "store", *rows) == 0
    assert len(seen) == 2 * len(names)  # early, to be refused, and in its turn
    capsys.readouterr()
    (tmp_path / f"{names[-1]}.safetensors").write_bytes(b"damaged")
    assert_refused(capsys, run(tmp_path / "store", *rows, "--seed", 5), f"{names[-1]}.safetensors: cannot be read")
    assert len(seen) == 3 * len(names) - 1


def test_a_plan_tells_what_is_left_and_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roundings = tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(load_recipe("brecq-w4a6")).save(roundings / "brecq-w4a6.safetensors")
    rows = ("--rows", "fp32,default,brecq-w4a6,ours-w4a6", "--roundings", roundings, "--plan")
    assert run(tmp_path / "store", *rows) == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": ("build, 6 pictures", "operations"),
        "noise floor": ("6 pictures", "operations"),
        "default": ("build, 6 pictures, 3 compared", "operations"),
        "brecq-w4a6": ("build, 6 pictures, 3 compared", "operations"),
    }
    assert lines[0].startswith("in all: about 51 s, and ")  # 10 and 2 * 20, and the images' operations
    assert lines[0].endswith(" MB more in the store; estimated")
    assert lines[1].startswith("left out: ours-w4a6: its weights are learned")
    assert not (tmp_path / "store").exists()

    # What is built has a batch of its own; what is measured is not asked again.
    assert run(tmp_path / "store", "--rows", "fp32,default") == 0
    before, _ = files(tmp_path / "store"), capsys.readouterr()
    assert run(tmp_path / "store", *rows) == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": ("in the store", ""),
        "noise floor": ("in the store", ""),
        "default": ("in the store", ""),
        "brecq-w4a6": ("build, 6 pictures, 3 compared", "full precision's batch"),
    }
    assert run(tmp_path / "store", "--rows", "fp32,default", "--seed", 0, "--seed", 1, "--plan") == 0
    assert shown_plan(capsys)[0] == {
        "fp32": ("in the store", ""),  # seed 1 was its noise floor
        "noise floor": ("12 pictures", "its own batch"),
        "default": ("6 pictures", "its own batch"),
    }
    assert run(tmp_path / "store", "--rows", "fp32,default", "--plan") == 0
    assert shown_plan(capsys)[1] == ["in all: about 0 s, and 0.0 MB more in the store; estimated"]
    assert files(tmp_path / "store") == before


def test_a_plan_says_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "store", "--rows", "fp32,brecq-w4a6", "--learn", "--plan") == 0
    _, lines = shown_plan(capsys)
    assert lines[1:] == ["and the time to learn the rounding of 1 row, which is not estimated: brecq-w4a6"]
    assert not (tmp_path / "store").exists()


def test_a_quick_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextscale.cli._quality_command.QUICK_IMAGES", 4)
    monkeypatch.setattr("nextscale.cli._quality_command.QUICK_COMPARED", 2)
    monkeypatch.setattr("nextscale.cli._quality_command.QUICK_CALIBRATION", 2)
    found = document(tmp_path / "store", "--quick", "--threads", 1)
    assert len(found["rows"]) == 5
    assert any(note.startswith("--quick") for note in found["notes"])
    assert not found["left_out"]


def test_official_sizes_go_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of heads of 64, as many as blocks, as the official ones are, but of two."""
    monkeypatch.setitem(presets.PRESETS, "var-d2", tiny_preset(depth=2, embed_dim=128, num_heads=2))
    monkeypatch.setitem(PAPER, 2, PAPER[16])  # type: ignore[arg-type]
    found = document(tmp_path / "store", "--preset", "var-d2", "--random-weights", "--rows", "fp32,default")
    assert any("random" in note for note in found["notes"])
    assert found["rows"][0]["cells"][0]["paper"] == 274.8
    assert any("beside the paper's VAR-d2" in note and "another model" not in note for note in found["notes"])


REFUSED = {
    "no reference": (("--rows", "default"), "has no full precision (fp32), the reference"),
    "twice": (("--rows", "fp32,fp32"), "has a recipe twice"),
    "no such recipe": (("--rows", "fp32,nothing"), "nothing"),
    "half a model": (("--var", "x.pth"), "Give --var and --vae, or neither for the demo model"),
    "standard metrics": (("--standard-metrics",), "IS and FID need --inception-weights, and --reference"),
    "quick and rows": (("--quick", "--rows", "fp32"), "--quick does not go with --rows"),
    "iterations": (("--iterations", 3), "a table without --learn does not go with --iterations"),
    "device": (("--device", "cpu"), "a table without --learn and --simulated does not go with --device"),
    "a simulated plan": (("--simulated", "--plan"), "--simulated does not go with --plan"),
    "top-p": (("--simulated", "--top-p", 2), "top_p"),
    "guidance": (("--cfg-scale", "nan"), "cfg_scale"),
    "a plan with files": (
        ("--plan", "--json", "table.json"),
        "--plan, which writes nothing, does not go with --json (see",
    ),
    "random weights that learn": (
        ("--preset", "var-d16", "--random-weights", "--learn"),
        "--random-weights does not go with --learn",
    ),
    "seeds": (("--seed", 1, "--seed", 1), "--seed: the same seed twice"),
}


def test_standard_metrics_are_by_the_standard_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "other.pth"
    weights.write_bytes(b"other weights")
    arguments = ("--standard-metrics", "--inception-weights", weights, "--reference", tmp_path / "real.npz")
    assert_refused(capsys, run(tmp_path / "store", *arguments), "other.pth: not the weights of the standard FID and IS")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = REFUSED[case]
    assert_refused(capsys, run(tmp_path / "store", *arguments), message)
    assert not (tmp_path / "store").exists()


def test_a_model_of_no_size_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny_preset())
    assert_refused(
        capsys,
        run(tmp_path / "store", "--preset", "tiny", "--random-weights"),
        "the model has 2 blocks of 64; Table 1 is of VAR-d16 (16 blocks of 1024), VAR-d20 (20 blocks of 1280)",
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (reference(3), "the reference has 3 features"),
        (reference(side=256), "the reference is of 256-pixel images, not 8"),
    ],
)
def test_statistics_of_something_else(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    found: Reference,
    message: str,
) -> None:
    monkeypatch.setattr("nextscale.cli.judging_options.read_demo_reference", lambda: found)
    assert_refused(capsys, run(tmp_path / "store"), message)
