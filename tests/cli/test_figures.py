from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_measures import FakeClassifier, FakeDistance
from PIL import Image
from pixel_network import PixelNetwork
from plans import files, shown_plan
from refusal import assert_refused
from tiny_model import ONE_THREAD, no_progress, rounded_down, tiny_source

from nextscale.calib_data.match_probabilities import FREQUENCIES
from nextscale.calib_data.sample import SamplingSettings, sample_token_maps
from nextscale.cli.main import main
from nextscale.compiler.build import build_bundle
from nextscale.compiler.options import BuildOptions
from nextscale.evaluate.image_statistics import Features
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.sources import VARSource
from nextscale.paper.figure_kernel import THETAS
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.recipe_bundles import RecipeBundle
from nextscale.paper.store import Store
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._session import SessionOptions
from nextscale.runtime.image_io import npz_writer, read_picture_parameters

FAST = ("--threads", "1", "--calibration-images", "2", "--ops", "stock", "--reference", "none", "--observed", "2",
        "--images", "8", "--pictures", "3", "--samples", "4")  # fmt: skip
STAGES, BLOCKS, V = 4, 2, 128


class Judge(PixelNetwork):
    """Features of the pixels, and a thousand classes."""

    name = "judge"

    def __call__(self, images: np.ndarray) -> Features:
        return Features(super().__call__(images).pooled, FakeClassifier()(images).probabilities)


def affordable(name: str) -> Recipe:
    """The recipe with a budget that so small a model can keep, and few calibration images."""
    recipe = paper_recipe(name)
    return replace(
        recipe,
        attention=replace(recipe.attention, budget=min(1.0, 50 * recipe.attention.budget)),
        calibration=replace(recipe.calibration, images=2),
    )


def named_source(model: object = None) -> VARSource:
    """The tiny model, with a name of ImageNet's."""
    return replace(tiny_source(), class_names=["goldfish, Carassius auratus", *(f"class {i}" for i in range(9))])


class KeptBundles:
    """Instead of `RecipeBundles`: full precision, default, BRECQ, and one of Ours for all budgets."""

    THERE = ("fp32", "default", "brecq-w4a6", "brecq-w6a6", "ours-w4a6")
    bundles: Path

    def __init__(self, store: Store, load: object, roundings: object, session: SessionOptions, encoder: bool) -> None:
        self.folder, self.session = store.folder / "copies", session

    def hold(self, recipes: Iterable[Recipe]) -> None:
        assert all(recipe.calibration.images == 2 for recipe in recipes if recipe.name != "fp32")

    def missing(self, recipe: Recipe) -> str | None:
        return None if recipe.name in self.THERE else f"{recipe.name}: its weights are learned"

    def built(self, recipe: Recipe) -> RecipeBundle | None:
        """A copy of the folder for each recipe and budget, so that they are told apart."""
        if self.missing(recipe) is not None:
            return None
        copy = self.folder / f"{recipe.name}-{recipe.attention.budget}"
        if not copy.exists():
            shutil.copytree(self.bundles / recipe.name, copy)
        return RecipeBundle(recipe.name, Bundle.open(copy))

    def planned(self, recipe: Recipe) -> RecipeBundle:
        return self.build(recipe, None)

    def has_maps(self, recipe: Recipe) -> bool:
        return (self.folder / "maps").exists()

    def build(self, recipe: Recipe, progress: object) -> RecipeBundle:
        found = self.built(recipe)
        assert found is not None
        return found

    def built_or_why(self, recipe: Recipe, progress: object) -> RecipeBundle | str:
        return self.missing(recipe) or self.build(recipe, progress)

    def maps(self, recipe: Recipe, progress: object) -> Path:
        target = self.folder / "maps"
        if not target.exists():
            generator = Generator(self.bundles / "fp32", self.session)
            settings = SamplingSettings(recipe.calibration.images, matching=recipe.calibration.matching)
            maps, report = sample_token_maps(generator, settings, self.folder / "sampling")
            maps.save(target, {FREQUENCIES: npz_writer(report.frequencies())})
        return target


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of `KeptBundles`."""
    folder, source = tmp_path_factory.mktemp("recipes"), named_source()
    for name in ("fp32", "default", "brecq-w4a6", "ours-w4a6"):
        recipe = affordable(name) if name != "fp32" else paper_recipe(name)
        rounding = rounded_down(recipe, source) if recipe.learned else None
        options = BuildOptions(recipe, session=ONE_THREAD, rounding=rounding, encoder=name in ("fp32", "brecq-w4a6"))
        build_bundle(source, folder / name, options, no_progress)
    shutil.copytree(folder / "brecq-w4a6", folder / "brecq-w6a6")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model is the tiny model; what judges pictures needs no weights."""
    monkeypatch.setattr("nextscale.cli.figures.source_of", named_source)
    monkeypatch.setattr("nextscale.cli.figures.Lpips", FakeDistance)
    monkeypatch.setattr("nextscale.cli.judging_options.FeatureNetwork", Judge)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, bundles: Path) -> None:
    """Nothing is built."""
    monkeypatch.setattr(KeptBundles, "bundles", bundles, raising=False)
    monkeypatch.setattr("nextscale.cli.figures.RecipeBundles", KeptBundles)


def run(folder: Path, *arguments: object) -> int:
    given = ("--out", folder / "figures", "--store", folder / "store", *FAST)
    return main(["paper", "figures", *map(str, (*arguments, *given))])


def document(folder: Path, name: str) -> dict[str, Any]:
    with Image.open(folder / "figures" / f"figure_{name}.png") as picture:
        assert picture.size[0] > 300
    found: dict[str, Any] = json.loads((folder / "figures" / f"figure_{name}.json").read_text())
    assert found["figure"] == name
    assert found["of"] == "tiny"
    return found


@pytest.mark.usefixtures("kept")
def test_all_figures_are_made_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(10, int)
    np.savez(tmp_path / "val.npz", images=rng.integers(0, 256, (10, 8, 8, 3), np.uint8), labels=labels)
    assert run(tmp_path, "--photographs", tmp_path / "val.npz") == 0
    shown = capsys.readouterr()
    assert "0 bundles to build, 72 pictures for IS and FID: about" in shown.err
    assert "figure E left out: no bundle of ours-w6a6, ours-w4a8, ours-w4a4\n  ours-w6a6: its weights" in shown.out
    assert "left out: litevar-w6a6: its weights are learned" in shown.out
    assert not (tmp_path / "figures" / "figure_E.png").exists()

    error = document(tmp_path, "1a")["numbers"]
    assert np.shape(error["shown"]["relative"]["brecq-w4a6"]) == (STAGES,)
    assert np.shape(error["by_stage_and_block"]["brecq-w4a6"]["relative"]) == (STAGES, BLOCKS)

    before, both = (document(tmp_path, name)["numbers"] for name in ("1b", "6"))
    assert before["tokens"] == 2 * 30  # as few samples as calibration images
    assert before["before"] == both["before"]
    assert sum(both["after"]) == pytest.approx(sum(both["target"]), rel=1e-4)
    assert len(both["after"]) == both["entries"] == V

    shares = document(tmp_path, "2")["numbers"]["share_above_theta_by_stage"]
    assert list(shares) == [f"{theta:g}" for theta in THETAS]
    # The first stage sees one token, which has all attention; no more tokens are above a larger theta.
    assert all(share[0] == 1 for share in shares.values())
    assert (np.diff([*shares.values()], axis=0) <= 0).all()

    fifth = document(tmp_path, "5")
    budgets = fifth["numbers"]["by_budget"]
    assert [figures["budget, %"] for figures in budgets.values()] == [None, 0, 0.25, 0.5, 1, 2, 5]
    assert set(fifth["numbers"]["error"]["shown"]["mean_squared"]) == {"brecq-w4a6", "ours-w4a6"}
    assert fifth["left_out"] == ["resample-w4a6: its weights are learned"]
    assert all("theta" in budgets[f"budget-{b}-w4a6"] for b in (0.25, 0.5, 2, 5))
    assert fifth["numbers"]["distance_is_to"] == "full precision's pictures"
    assert budgets["fp32"]["FID-E to full precision"] is None

    points = document(tmp_path, "F")["numbers"]["by_recipe"]
    assert list(points) == ["fp32", "brecq-w6a6", "brecq-w4a6", "ours-w4a6", "default"]
    operations = {name: figures["bit operations of an image's row"] for name, figures in points.items()}
    assert operations["brecq-w4a6"] < operations["brecq-w6a6"] < operations["default"] < operations["fp32"]
    assert 1 < operations["ours-w4a6"] / operations["brecq-w4a6"] < 1.5
    # Points that both figures show are the same pictures.
    assert points["ours-w4a6"]["IS-E"] == budgets["ours-w4a6"]["IS-E"]

    for name, forced in (("A", 0), ("B", 2)):
        drawn = document(tmp_path, name)["numbers"]
        assert drawn["stages_with_full_precision_tokens"] == forced
        assert list(drawn["rows"]) == ["fp32", "brecq-w6a6"]
        assert drawn["rows"]["fp32"] == {"equal_tokens": [1, 1, 1], "psnr_to_full_precision": [None] * 3}
        parameters = read_picture_parameters(tmp_path / "figures" / f"figure_{name}.png")
        assert parameters is not None
        assert parameters["classes"] == drawn["classes"]

    edited = document(tmp_path, "D")["numbers"]
    assert [row["name"] for row in edited["rows"]] == ["fp32", "noise floor", "brecq-w6a6"]


@pytest.mark.usefixtures("kept")
def test_figures_of_a_block_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "a", "1A", "D", "--block", 2) == 0
    shown = capsys.readouterr()
    assert "0 pictures for IS and FID" in shown.err
    assert "figure D left out: it edits photographs, and no --photographs are given" in shown.out
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"figure_1a.png", "figure_1a.json", "figure_A.png", "figure_A.json"}
    error = document(tmp_path, "1a")["numbers"]
    assert error["block"] == 2
    figures = error["by_stage_and_block"]["brecq-w4a6"]
    assert error["shown"]["relative"]["brecq-w4a6"] == [blocks[1] for blocks in figures["relative"]]


@pytest.mark.usefixtures("kept")
def test_forced_stages_have_full_precisions_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[np.ndarray | None]()
    generate = Generator.generate

    def watched(self: Generator, *arguments: object, **settings: object) -> object:
        asked.append(settings.get("forced_tokens"))  # type: ignore[arg-type]
        return generate(self, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "generate", watched)
    assert run(tmp_path, "B") == 0
    *_, original, brecq = asked
    assert original is None
    assert brecq is not None
    generator = Generator(KeptBundles.bundles / "fp32", ONE_THREAD)
    labels = document(tmp_path, "B")["numbers"]["classes"]
    expected = generate(generator, labels, seed=0).token_maps
    assert np.array_equal(brecq[:, :5], expected[:, :5])  # stages of 1 and 4 tokens
    assert (brecq[:, 5:] == -1).all()


def test_bundles_are_built_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roundings = tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(paper_recipe("brecq-w4a6"), named_source()).save(roundings / "brecq-w4a6.safetensors")
    assert run(tmp_path, "1a", "--roundings", roundings) == 0
    shown = capsys.readouterr()
    assert "1 bundle to build" in shown.err
    assert f"figure 1a: {tmp_path / 'figures' / 'figure_1a.png'}, figure_1a.json\n" == shown.out
    first = document(tmp_path, "1a")
    assert first["settings"]["calibration_images"] == 2
    assert run(tmp_path, "1a", "--roundings", roundings) == 0
    assert "0 bundles to build" in capsys.readouterr().err
    assert document(tmp_path, "1a") == first

    assert run(tmp_path, "1a") == 0
    assert capsys.readouterr().out == (
        "figure 1a left out: no bundle of brecq-w4a6\n"
        "  brecq-w4a6: its weights are learned, and no --roundings is given\n"
    )


def plan(folder: Path, *arguments: object) -> int:
    return main(["paper", "figures", *map(str, (*arguments, "--store", folder / "store", *FAST)), "--plan"])


def test_a_plan_tells_what_is_left_and_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roundings = tmp_path / "roundings"
    roundings.mkdir()
    rounded_down(paper_recipe("brecq-w4a6"), named_source()).save(roundings / "brecq-w4a6.safetensors")
    arguments = ("1a", "1b", "2", "A", "D", "--roundings", roundings)
    assert plan(tmp_path, *arguments) == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": ("build", "operations"),
        "brecq-w4a6": ("build", "operations"),
        "figure 1a": ("2 observed", "operations"),
        "figure 1b": ("2 samples", "operations"),
        "figure 2": ("2 observed", "operations"),
    }
    assert lines[0].startswith("in all: about 31 s, and ")  # 10 and 20, and the images' operations
    recipes = ["brecq-w6a6", "litevar-w6a6", "ours-w6a6"]
    assert [line.split(":")[1].strip() for line in lines[1:]] == [*recipes, "figure D", "figure A"]
    assert lines[-2:] == [
        "left out: figure D: it edits photographs, and no --photographs are given",
        f"left out: figure A: no bundle of {', '.join(recipes)}",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"roundings"}

    assert run(tmp_path, "1a", "1b", "--roundings", roundings) == 0
    before, _ = files(tmp_path), capsys.readouterr()
    assert plan(tmp_path, *arguments) == 0
    steps, _ = shown_plan(capsys)
    finished = dict.fromkeys(("fp32", "brecq-w4a6", "figure 1a", "figure 1b"), ("in the store", ""))
    assert steps == finished | {"figure 2": ("2 observed", "full precision's batch")}
    assert files(tmp_path) == before


@pytest.mark.usefixtures("kept")
def test_a_plan_counts_pictures_and_what_figures_share_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "F") == 0
    capsys.readouterr()
    assert plan(tmp_path, "F") == 0
    finished = dict.fromkeys(("fp32", "brecq-w4a6", "ours-w4a6", "brecq-w6a6", "default"), ("in the store", ""))
    assert shown_plan(capsys)[0] == finished
    assert plan(tmp_path, "1a", "1b", "5", "6", "E", "F") == 0
    budgets = [f"budget-{budget}-w4a6" for budget in (0.25, 0.5, 2, 5)]  # copies of ours-w4a6, whose pictures are there
    steps, lines = shown_plan(capsys)
    assert steps == finished | dict.fromkeys(budgets, ("in the store", "")) | {
        "figure 1a": ("2 observed", "full precision's batch"),
        "figure 1b": ("2 samples", "full precision's batch"),
        "figure 5": ("2 observed", "full precision's batch"),  # of ours-w4a6 alone
    }
    assert lines[-1] == "left out: figure E: no bundle of ours-w6a6, ours-w4a8, ours-w4a4"


def test_where_figures_go_is_said_but_for_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ("--store", str(tmp_path / "store"))
    assert_refused(capsys, main(["paper", "figures", "2", *store]), "where shall the figures go? Give --out")
    assert_refused(capsys, run(tmp_path, "2", "--plan"), "--plan, which writes nothing, does not go with --out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7",), "'7' is not one of '1a', '1b', '2', '5', '6', 'a', 'b', 'd', 'e', 'f'"),
        (("2", "--block", 3), "--block 3: the model has 2"),
        (("2", "--var", "var.pth"), "which model? Give --var and --vae, or neither for the demo model"),
        (("2", "--photographs", "none"), "'none' does not exist"),
        (("F", "--reference", "none.npz"), "none.npz: cannot be read: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert main(["paper", "figures", "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"),
                 *map(str, arguments)]) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error: ") == 1
    assert not list(tmp_path.glob("out/*"))


def test_photographs_that_are_too_small_are_told_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextscale.cli.figures.RecipeBundles.build", None)
    np.savez(tmp_path / "val.npz", images=np.zeros((3, 7, 7, 3), np.uint8))
    assert run(tmp_path, "D", "--photographs", tmp_path / "val.npz") == 2
    assert "3 of 3 photographs are smaller than the model's pictures, 8 x 8 pixels" in capsys.readouterr().err


def test_figures_that_cannot_be_written_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures" / "figure_2.png").mkdir(parents=True)
    assert run(tmp_path, "2") == 2
    assert "figure_2.png: it is a folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("store/*"))


def test_without_matplotlib_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextscale.cli.figures.importlib.util.find_spec", lambda name: None)
    assert run(tmp_path, "2") == 2
    assert 'the figures need matplotlib, which is not installed: pip install "nextscale[eval]"' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "figures").exists()
