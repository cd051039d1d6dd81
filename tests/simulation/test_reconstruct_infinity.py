"""Reconstruction of a tiny Infinity: texts of several lengths, sizes of several numbers of stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.models.equalization import Equalization
from nextscale.models.infinity.folded import FoldedInfinity
from nextscale.models.infinity.schedules import first_stages
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.infinity_images import InfinityImages
from nextscale.simulation.reconstruct import Step, reconstruct, units
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_ranges import calibrated
from nextscale.simulation.teacher_forced_images import FULL_PRECISION, batches
from tests.tiny_infinity import CONFIG, tiny_infinity

SIZES = (first_stages(3, (3, 4)), first_stages(2, (1, 1)))
MANY, SEEN = 128, 112
FEW = ReconstructionSettings(iterations=2, batch_size=3)
UNITS = [*(f"blocks.{i}.{part}" for i in (0, 1) for part in ("sa", "ca", "ffn")), "head"]


def images(count: int = 6) -> InfinityImages:
    rng = np.random.default_rng(0)
    texts = tuple(rng.standard_normal((2 + i % 3, CONFIG.text_channels)).astype(np.float32) for i in range(count))
    chosen = np.resize([0, 1], count)
    bits = tuple(rng.integers(0, 2, (SIZES[size].num_tokens, CONFIG.token_bits)) for size in chosen)
    return InfinityImages(tiny_infinity(), SIZES, Subjects(chosen, texts=texts), bits)


def learn(recipe: Recipe, settings: ReconstructionSettings = FEW, count: int = 6, work: Path | None = None) -> Rounding:
    form = recipe.attention.shift_and_sum
    extra = None if form == "off" else ShiftAndSum(form, 0.1, (1, 4, 6))
    return reconstruct(images(count), recipe, settings, shift_and_sum=extra, work=work)


def floats(layer: str, rounding: Rounding) -> NDArray[np.float32]:
    """The equalized weight [out, in]."""
    factors = {name: torch.from_numpy(found) for name, found in rounding.factors.items()}
    found = FoldedInfinity(tiny_infinity(), Equalization(factors)).weight(layer)
    weight: NDArray[np.float32] = (found if isinstance(found, torch.Tensor) else found()).numpy()
    return weight


@pytest.fixture(scope="module")
def learned() -> Rounding:
    return learn(load_recipe("brecq-w4a8"), ReconstructionSettings(iterations=120, batch_size=8), MANY)


def test_learned_weights_are_nearer_to_full_precision(learned: Rounding) -> None:
    """Of single units the report has the error on as few images as a step sees; the next test has more."""
    found = learned.report["units"]
    assert list(found) == UNITS
    assert np.mean([unit["relative"] for unit in found.values()]) < 0.95
    assert learned.report["kept"] == "reconstructed"
    assert learned.report["kl_reconstructed"] < learned.report["kl_nearest"]
    assert (learned.report["images"], learned.report["held_out_images"]) == (SEEN, MANY - SEEN)
    assert learned.report["settings"]["cfg_scale"] == 3.0


def test_units_are_better_on_images_that_learning_did_not_see(learned: Rounding) -> None:
    """Each fed what the learned units before it give, as it is when the model runs; against its rounding to nearest."""
    given = images(MANY)
    held_out, recipe = given[SEEN:], load_recipe("brecq-w4a8")
    nearest, better = (calibrated(given[:SEEN], recipe) for _ in range(2))
    for name in learned.layers:
        better.linears[name].set_codes(learned.codes(name, better.linears[name].exact.numpy()))
    full, sums = held_out.twin(FULL_PRECISION), np.zeros((len(UNITS), 2))
    with torch.no_grad():
        for pick in batches(held_out, 4):
            target, x = (held_out.embed(twin, pick, *held_out.given(twin, pick)) for twin in (full, better))
            for index, unit in enumerate(units(full, held_out.cfg_scale)):
                target = unit.run(full, target, *held_out.given(full, pick))
                plain, x = (unit.run(twin, x, *held_out.given(twin, pick)) for twin in (nearest, better))
                sums[index] += [float((found - target).square().sum()) for found in (plain, x)]
    ratios = sums[:, 1] / sums[:, 0]
    assert (ratios < 1).all(), dict(zip(UNITS, ratios.round(2), strict=True))
    assert ratios.mean() < 0.92


def test_the_codes_give_the_reported_agreement(learned: Rounding) -> None:
    given = images(MANY)
    twin = calibrated(given[:SEEN], load_recipe("brecq-w4a8"))
    for name in learned.layers:
        twin.linears[name].set_codes(learned.codes(name, floats(name, learned)))
    found = simulated_agreement(given[SEEN:], twin)
    assert found.kl == pytest.approx(learned.report["kl_reconstructed"], rel=1e-3)


def test_keys_and_values_of_the_text_are_learned(learned: Rounding) -> None:
    """With what reads them; layers of the text itself and adaLN's are rounded to nearest."""
    parts = ("sa.q", "sa.k", "sa.v", "sa.proj", "ca.k", "ca.v", "ca.q", "ca.proj", "ffn.fc1", "ffn.fc2")
    assert set(learned.layers) == {f"blocks.{i}.{part}" for i in (0, 1) for part in parts} | {"head"}


@pytest.mark.parametrize("name", ["default-w4a4", "litevar-w4a6", "ours-w4a4", "ours-litevar-w8a8"])
def test_recipes_with_learned_weights(name: str) -> None:
    found = learn(load_recipe(name))
    assert ("blocks.0.ffn.fc2" in found.layers) == ("litevar" not in name)
    assert bool(found.factors) == ("default" in name)
    for layer in found.layers:
        assert found.codes(layer, floats(layer, found)).dtype == np.int8
    figures = found.report["kl_nearest"], found.report["kl_reconstructed"]
    assert found.report["kept"] == ("reconstructed" if figures[1] < figures[0] else "nearest")


class Stopped(Exception):
    """Ctrl-C."""


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    recipe, seen = load_recipe("brecq-w4a6"), list[str]()

    def stop(step: Step) -> None:
        if step.unit == "blocks.1.ca":
            raise Stopped

    with pytest.raises(Stopped):
        reconstruct(images(), recipe, FEW, work=tmp_path, on_step=stop)
    done = [f"{unit}.npz" for unit in UNITS[:4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*done, "settings.json"])
    found = reconstruct(images(), recipe, FEW, work=tmp_path, on_step=lambda step: seen.append(step.unit))
    assert list(dict.fromkeys(seen)) == UNITS[4:]
    whole = learn(recipe)
    for name, layer in whole.layers.items():
        np.testing.assert_array_equal(found.layers[name].up, layer.up)


def test_other_images_in_the_folder_are_refused(tmp_path: Path) -> None:
    learn(load_recipe("brecq-w4a6"), work=tmp_path)
    other = replace(images(), token_maps=tuple(1 - bits for bits in images().token_maps))
    with pytest.raises(NextscaleError, match="was begun with images "):
        reconstruct(other, load_recipe("brecq-w4a6"), FEW, work=tmp_path)
