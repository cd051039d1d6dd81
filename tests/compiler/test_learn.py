"""Learning in one go on the tiny model: what an interrupt leaves, what is refused, and that nothing else changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_steps import BUILDING, FIRST, PREPARING, SAMPLING, THETA, Interrupter
from tiny_model import ONE_THREAD, L, V, build_tiny, no_progress, tiny_recipe, tiny_source

from nextscale.calib_data.choose_theta import ThetaChoice
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler import BuildOptions, learn_bundle
from nextscale.compiler.learn import learning_folder
from nextscale.graph_passes.recipe import Recipe
from nextscale.models.var.sources import VARSource
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding

FEW = ReconstructionSettings(iterations=3, batch_size=2)
PLAIN, SHIFT_AND_SUM = "default-w4a4", "ours-w4a6"
ATTN_0, FFN_0, ATTN_1, FFN_1, HEAD = (
    f"learning {unit}" for unit in ("blocks.0.attn", "blocks.0.ffn", "blocks.1.attn", "blocks.1.ffn", "head")
)
MATCHINGS = {PLAIN: "none", SHIFT_AND_SUM: "published"}
Progress = Callable[..., None]


def learn(
    out: Path,
    recipe: str | Recipe = PLAIN,
    progress: Progress = no_progress,
    settings: ReconstructionSettings = FEW,
    source: VARSource | None = None,
    device: Any = "cpu",
    **options: Any,
) -> tuple[Bundle, Rounding]:
    chosen = tiny_recipe(recipe) if isinstance(recipe, str) else recipe
    built = BuildOptions(chosen, session=ONE_THREAD, **{"encoder": False, **options})
    return learn_bundle(source or tiny_source(), out, built, settings, device, progress)


def graphs(bundle: Path) -> dict[str, bytes]:
    """What runs: graphs and weights."""
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.suffix in (".onnx", ".data")}


@pytest.fixture(scope="module", params=[PLAIN, SHIFT_AND_SUM])
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Rounding]:
    """A bundle that was learned without interruption, named after its recipe, alone in its folder."""
    return learn(tmp_path_factory.mktemp("whole") / request.param, request.param)


@pytest.fixture
def whole(learned: tuple[Bundle, Rounding]) -> Path:
    return learned[0].path


def test_only_the_bundle_is_left(whole: Path) -> None:
    assert list(whole.parent.iterdir()) == [whole]
    recipe = Bundle.open(whole, verify_hashes=True).manifest.recipe
    assert (recipe["name"], recipe["calibration"]["images"]) == (whole.name, 5)
    assert recipe["calibration"]["token_maps"]["settings"]["matching"] == MATCHINGS[whole.name]


def test_reconstruction_and_bundle_share_theta_and_places(learned: tuple[Bundle, Rounding]) -> None:
    bundle, rounding = learned
    chosen, expected = bundle.manifest.recipe.get("shift_and_sum"), None
    if bundle.path.name == SHIFT_AND_SUM:
        expected = {"theta": chosen["theta"], "places": chosen["rows"]}
    assert rounding.report["shift_and_sum"] == expected
    assert rounding.report["settings"]["iterations"] == FEW.iterations


# Where each run is stopped, and what it does until then; the last one ends.
RUNS = {
    PLAIN: [
        ((SAMPLING, 2), [FIRST, SAMPLING]),
        ((ATTN_1, 1), [SAMPLING, PREPARING, ATTN_0, FFN_0, ATTN_1]),
        ((BUILDING, 1), [PREPARING, ATTN_1, FFN_1, HEAD, BUILDING]),
        (None, [BUILDING]),
    ],
    SHIFT_AND_SUM: [
        ((FIRST, 1), [FIRST]),
        ((THETA, 2), [FIRST, SAMPLING, THETA]),
        ((PREPARING, 1), [THETA, PREPARING]),
        ((HEAD, 1), [PREPARING, ATTN_0, FFN_0, ATTN_1, FFN_1, HEAD]),
        (None, [PREPARING, HEAD, BUILDING]),
    ],
}


def test_interrupted_in_every_step_and_resumed_gives_the_same(whole: Path, tmp_path: Path) -> None:
    """Every run goes on where the one before was stopped, and says so; no step is done twice."""
    out = tmp_path / whole.name
    work = learning_folder(out)
    for i, (stop, expected) in enumerate(RUNS[whole.name]):
        progress = Interrupter(*stop or ())
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                learn(out, whole.name, progress)
            assert list(tmp_path.iterdir()) == [work]
        else:
            learn(out, whole.name, progress)
        going_on = [f"going on from {work}"] if i else []
        assert progress.seen[: len(going_on) + len(expected)] == going_on + expected
        if stop == (SAMPLING, 2):
            assert len(list((work / "sampling").glob("*/*.npz"))) == 2
    assert graphs(out) == graphs(whole)
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert list(tmp_path.iterdir()) == [out]


def test_the_model_is_as_it_was(tmp_path: Path, int8_bundle: Path) -> None:
    """Learning leaves no trace in it: a further bundle is the same."""
    source = tiny_source()
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "out", progress=Interrupter(BUILDING), source=source)
    assert graphs(build_tiny(tmp_path / "after", "int8", source)) == graphs(int8_bundle)


def test_given_token_maps_are_not_sampled_again(tmp_path: Path) -> None:
    maps = TokenMaps(np.arange(4), np.random.default_rng(0).integers(0, V, (4, L)), {})
    out, progress = tmp_path / "out", Interrupter(BUILDING)
    with pytest.raises(KeyboardInterrupt):
        learn(out, progress=progress, token_maps=maps)
    assert progress.seen[:2] == [PREPARING, ATTN_0]
    report = Rounding.load(learning_folder(out) / "reconstruction" / "rounding.safetensors").report
    assert (report["images"], report["held_out_images"]) == (3, 1)


def test_a_given_theta_is_learned_with_and_built(tmp_path: Path) -> None:
    """It is not chosen, and work that was begun with another is not gone on with."""
    given, out = ThetaChoice(0.1, "duplicate", 0.01, 0.01, 2, (1, 2, 3, 4), 0.001, 8), tmp_path / "out"
    progress = Interrupter(FFN_0)
    with pytest.raises(KeyboardInterrupt):
        learn(out, SHIFT_AND_SUM, progress, theta=given)
    assert THETA not in progress.seen
    with pytest.raises(NextscaleError, match=r"was begun with shift_and_sum\.theta 0\.1 instead of 0\.2"):
        learn(out, SHIFT_AND_SUM, theta=replace(given, theta=0.2))
    bundle, rounding = learn(out, SHIFT_AND_SUM, theta=given)
    assert rounding.report["shift_and_sum"] == {"theta": 0.1, "places": [1, 2, 3, 4]}
    assert bundle.manifest.recipe["shift_and_sum"]["theta"] == 0.1


def with_images(recipe: Recipe, images: int) -> Recipe:
    return replace(recipe, calibration=replace(recipe.calibration, images=images))


OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "seed": ({"seed": 1}, "", "calibration.seed 0 instead of 1;"),
    "images": ({"recipe": with_images(tiny_recipe(PLAIN), 6)}, "", "recipe.calibration.images 5 instead of 6;"),
    "recipe": (
        {"recipe": tiny_recipe(SHIFT_AND_SUM)},
        "",
        "recipe.name default-w4a4 instead of ours-w4a6, recipe.weights.range mse instead of percentile, "
        "recipe.activations.bits 4 instead of 6 and ",
    ),
    "model": ({"source": tiny_source(num_classes=9)}, "", "model.num_classes 10 instead of 9, model.weights "),
    "token maps": (
        {"token_maps": TokenMaps(np.arange(2), np.zeros((2, L), np.int64), {})},
        "",
        "calibration.token_maps sampled instead of ",
    ),
    "iterations": ({"settings": replace(FEW, iterations=4)}, "/reconstruction", "iterations 3 instead of 4;"),
    "batch": (
        {"settings": replace(FEW, seed=2, batch_size=3)},
        "/reconstruction",
        "batch_size 2 instead of 3, seed 0 instead of 2;",
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was never made: learning was interrupted after the first unit."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(KeyboardInterrupt):
        learn(out, progress=Interrupter(FFN_0))
    return out


@pytest.mark.parametrize(("changed", "folder", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_other_settings_are_refused(stopped: Path, changed: dict[str, Any], folder: str, message: str) -> None:
    work = learning_folder(stopped)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    with pytest.raises(NextscaleError) as refused:
        learn(stopped, **changed)
    assert str(refused.value).startswith(f"{work}{folder}: was begun with {message}")
    assert str(refused.value).endswith("; give the same again to go on, or remove it to begin again")
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_learning_can_be_begun_again_alone(stopped: Path, tmp_path: Path) -> None:
    """What the refusal says: token maps stay where only learning has other settings."""
    out, progress = tmp_path / "out", Interrupter(FFN_0)
    shutil.copytree(learning_folder(stopped), learning_folder(out))
    shutil.rmtree(learning_folder(out) / "reconstruction")
    with pytest.raises(KeyboardInterrupt):
        learn(out, progress=progress, settings=replace(FEW, iterations=4))
    assert progress.seen == [f"going on from {learning_folder(out)}", PREPARING, ATTN_0, FFN_0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    work = learning_folder(tmp_path / "out")
    work.mkdir()
    (work / "mine.txt").write_text("precious")
    with pytest.raises(NextscaleError, match=r"out\.learning/settings\.json: missing; remove .* or choose"):
        learn(tmp_path / "out")
    assert (work / "mine.txt").read_text() == "precious"


def test_a_damaged_theta_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        learn(out, SHIFT_AND_SUM, Interrupter(PREPARING))
    path = learning_folder(out) / "theta.json"
    for content in ("", "[]", "{}", '{"rows": 3}', '{"rows": [1]}'):
        path.write_text(content)
        with pytest.raises(NextscaleError, match=r"theta\.json: damaged; remove it"):
            learn(out, SHIFT_AND_SUM)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("default", "recipe default: rounds weights to nearest, so there is nothing to learn; leave out --learn, or"),
        ("fp32", "recipe fp32: quantizes nothing, so there is nothing to learn"),
    ],
)
def test_a_recipe_with_nothing_to_learn_is_refused(tmp_path: Path, recipe: str, message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        learn(tmp_path / "out", recipe)
    assert not list(tmp_path.iterdir())


def test_no_gpu_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NextscaleError, match="--device cuda: this torch finds no GPU"):
        learn(tmp_path / "out", device="cuda")
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        learn(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_learning_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(OutputError, match=r"/proc/none/out\.learning: cannot be made .*; choose another --out"):
        learn(Path("/proc/none/out"))
