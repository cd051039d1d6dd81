"""Bundles by recipe: commands share what is the same, and nothing that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import write_fake_bundle
from tiny_model import ONE_THREAD, no_progress, rounded_down, tiny_source

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler.options import BuildOptions
from nextscale.compiler.var_family import VARFamily
from nextscale.graph_passes.recipe import CalibrationRecipe, Recipe, WeightRecipe, load_recipe
from nextscale.models.sources import Source
from nextscale.paper import recipe_bundles
from nextscale.paper.recipe_bundles import FULL_PRECISION, Learning, RecipeBundles
from nextscale.paper.store import Store
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding

MATCHED = CalibrationRecipe(images=2, matching="published")
NEAREST = Recipe("nearest", calibration=MATCHED)
LEARNED = Recipe("learned", weights=WeightRecipe(rounding="reconstructed"), calibration=MATCHED)
FULL = load_recipe(FULL_PRECISION)
Built = list[tuple[str, str]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Built:
    """What is built: the bundle's name, and how; in the place of bundles there are folders of one that is quick."""
    calls: Built = []

    def build_bundle(source: Source, out: Path, options: BuildOptions, *further: object) -> None:
        calls.append((source.name, "built"))
        write_fake_bundle(out)

    def learn_bundle(source: Source, out: Path, options: BuildOptions, *further: object) -> tuple[None, Rounding]:
        calls.append((source.name, "learned"))
        assert options.token_maps is not None
        write_fake_bundle(out)
        return None, rounded_down(options.recipe)

    def sample(family: VARFamily, generator: Generator, options: BuildOptions, *further: object) -> TokenMaps:
        images = options.recipe.calibration.images
        calls.append((generator.bundle.manifest.name, "sampled"))
        return TokenMaps(np.zeros(images, np.int64), np.zeros((images, 30), np.int64), {})

    monkeypatch.setattr(recipe_bundles, "build_bundle", build_bundle)
    monkeypatch.setattr(recipe_bundles, "learn_bundle", learn_bundle)
    monkeypatch.setattr(VARFamily, "sample", sample)
    return calls


def bundles(
    store: Store, load: Callable[[], Source] = tiny_source, learning: Learning | None = None, *, encoder: bool = False
) -> RecipeBundles:
    return RecipeBundles(store, load, None, ONE_THREAD, learning, encoder)


def kinds(store: Store) -> list[str]:
    return sorted(entry.kind for entry in store.entries())


def with_images(recipe: Recipe, images: int) -> Recipe:
    return replace(recipe, calibration=replace(recipe.calibration, images=images))


def test_what_is_the_same_is_built_once(tmp_path: Path, built: Built) -> None:
    store = Store(tmp_path)
    first = bundles(store).build(NEAREST, no_progress)
    assert built == [("tiny-fp32", "built"), ("fake-0", "sampled"), ("tiny-nearest", "built")]
    assert kinds(store) == ["bundle", "bundle", "maps"]
    other = bundles(store)
    assert other.build(NEAREST, no_progress).bundle.path == first.bundle.path
    assert other.built(FULL) is not None
    assert other.build(replace(NEAREST, name="again"), no_progress).bundle.path != first.bundle.path
    assert built[3:] == [("tiny-again", "built")]  # with the same maps
    assert kinds(store) == ["bundle", "bundle", "bundle", "maps"]


def test_what_differs_is_another(tmp_path: Path, built: Built) -> None:
    store = Store(tmp_path)
    asked = [
        (bundles(store), NEAREST),
        (bundles(store), with_images(NEAREST, 3)),
        (bundles(store), replace(NEAREST, calibration=CalibrationRecipe(images=2, matching="none"))),
        (bundles(store), replace(NEAREST, weights=WeightRecipe(bits=4))),
        (bundles(store, encoder=True), NEAREST),
        (bundles(store, lambda: tiny_source(seed=1)), NEAREST),
        (bundles(store, lambda: replace(tiny_source(), class_names=[f"{i}" for i in range(10)])), NEAREST),
    ]
    assert all(of_one.built(recipe) is None for of_one, recipe in asked)
    paths = {of_one.build(recipe, no_progress).bundle.path for of_one, recipe in asked}
    assert len(paths) == len(asked)
    assert built.count(("tiny-fp32", "built")) == 3  # of two weights, and with other names of classes
    assert kinds(store).count("maps") == 4


def test_a_bundle_with_an_encoder_will_do_where_none_is_needed(tmp_path: Path, built: Built) -> None:
    store = Store(tmp_path)
    made = bundles(store, encoder=True).build(FULL, no_progress)
    assert bundles(store).build(FULL, no_progress).bundle.path == made.bundle.path
    assert len(built) == 1


def test_the_frequencies_lie_beside_the_maps(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = bundles(store).maps(NEAREST, no_progress)
    assert folder == bundles(store).maps(replace(NEAREST, name="again"), no_progress)
    with np.load(folder / "frequencies.npz") as arrays:
        assert set(arrays) == {"target", "before", "after"}
        assert arrays["before"].sum() == arrays["after"].sum() == 2 * 30


def test_rounding_of_a_file_is_part_of_what_decides(tmp_path: Path, built: Built) -> None:
    store, roundings = Store(tmp_path / "store"), tmp_path / "roundings"
    roundings.mkdir()
    with_file = replace(bundles(store), roundings=roundings)
    path = roundings / "learned.safetensors"
    assert with_file.missing(LEARNED) == f"learned: its weights are learned, and there is no {path}"
    assert with_file.built(LEARNED) is None
    found = rounded_down(LEARNED)
    paths = set()
    for report in ({}, {"other": 1}):
        replace(found, report=report).save(path)
        paths.add(with_file.build(LEARNED, no_progress).bundle.path)
        paths.add(with_file.build(LEARNED, no_progress).bundle.path)
    assert len(paths) == 2
    assert built.count(("tiny-learned", "built")) == 2
    assert bundles(store).built(LEARNED) is None
    assert bundles(store).missing(LEARNED) == "learned: its weights are learned, and no --roundings is given"


def test_rounding_that_is_learned_is_kept(tmp_path: Path, built: Built) -> None:
    store, learning = Store(tmp_path), Learning(ReconstructionSettings(iterations=3), "cpu")
    made = bundles(store, learning=learning).build(LEARNED, no_progress)
    assert built == [("tiny-fp32", "built"), ("fake-0", "sampled"), ("tiny-learned", "learned")]
    assert kinds(store) == ["bundle", "bundle", "maps", "rounding"]
    assert bundles(store, learning=learning).build(LEARNED, no_progress).bundle.path == made.bundle.path
    assert bundles(store, learning=learning, encoder=True).build(LEARNED, no_progress).bundle.path != made.bundle.path
    assert built[3:] == [("tiny-learned", "built")]
    longer = Learning(ReconstructionSettings(iterations=4), "cpu")
    assert bundles(store, learning=longer).build(LEARNED, no_progress).bundle.path != made.bundle.path
    assert built[4:] == [("tiny-learned", "learned")]


def test_a_bundle_that_was_learned_before_an_interruption_is_taken(
    tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, learning = Store(tmp_path), Learning(ReconstructionSettings(iterations=3), "cpu")

    def interrupted(rounding: Rounding, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Rounding, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bundles(store, learning=learning).build(LEARNED, no_progress)
    assert bundles(store, learning=learning).built(LEARNED) is None
    bundles(store, learning=learning).build(LEARNED, no_progress)
    assert built == [("tiny-fp32", "built"), ("fake-0", "sampled"), ("tiny-learned", "learned")]


def test_what_recipes_need_is_held(tmp_path: Path, built: Built) -> None:
    with Store(tmp_path) as store:
        bundles(store).build(NEAREST, no_progress)
        bundles(store).build(with_images(NEAREST, 3), no_progress)
    with Store(tmp_path, limit=0) as store:
        bundles(store).hold([NEAREST, LEARNED])
        assert sorted(f"{entry.kind} {entry.label}" for entry in store.evict()) == [
            "bundle tiny-fp32",
            "bundle tiny-nearest",
            "maps tiny-published-3",
        ]
        assert bundles(store).built(NEAREST) is not None
        assert bundles(store).built(FULL) is None


def test_a_damaged_bundle_is_one_line(tmp_path: Path, built: Built) -> None:
    store = Store(tmp_path)
    made = bundles(store).build(FULL, no_progress)
    (made.bundle.path / "manifest.json").write_text("{")
    with pytest.raises(
        NextscaleError, match=r"bundle-\S+: damaged; remove this folder to make it again \(manifest\.json"
    ) as told:
        bundles(store).built(FULL)
    assert "\n" not in str(told.value)
