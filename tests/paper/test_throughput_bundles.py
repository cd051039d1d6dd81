from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_model import ONE_THREAD, no_progress, rounded_down, tiny_preset, tiny_source

from nextscale.graph_passes.recipe import AttentionRecipe, CalibrationRecipe, Recipe, WeightRecipe, load_recipe
from nextscale.models.var.presets import get_preset
from nextscale.models.var.sources import VARSource
from nextscale.paper.store import Store
from nextscale.paper.throughput_bundles import ModelOrigin, ThroughputBundles, decoder_operations
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.rounding import Rounding

SHIFT = Recipe(
    "shift",
    weights=WeightRecipe(rounding="reconstructed"),
    attention=AttentionRecipe("integer", shift_and_sum="residual", budget=0.5),
    calibration=CalibrationRecipe(images=64, matching="published"),
)


def bundles(folder: Path, random: bool, loads: list[int] | None = None) -> ThroughputBundles:
    def load() -> VARSource:
        if loads is not None:
            loads.append(1)
        return tiny_source()

    return ThroughputBundles(ModelOrigin({"name": "tiny"}, load, random), Store(folder), None, 2, ONE_THREAD)


def test_convolutions_of_the_papers_decoder() -> None:
    """0.39 T, counted without weights."""
    assert decoder_operations(get_preset("var-d16").vqvae) == pytest.approx(0.393e12, rel=1e-3)


def test_convolutions_of_a_decoder_counted_by_hand() -> None:
    preset = replace(tiny_preset().vqvae, ch=32, ch_mult=(1,), num_res_blocks=1, using_sa=False, using_mid_sa=False)
    positions = 4 * 4
    three = 2 * 9 * positions  # of a 3 x 3 convolution, a pair of channels
    # post_quant_conv and conv_in; three blocks around and after the middle and one more for the level; conv_out.
    expected = three * (32 * 32 + 32 * 32 + (2 + 2) * 2 * 32 * 32 + 32 * 3)
    assert decoder_operations(preset) == expected


@pytest.mark.parametrize("random", [True, False])
def test_places_are_the_demo_models_where_weights_are_random(tmp_path: Path, random: bool) -> None:
    loads: list[int] = []
    ((row,), operations) = bundles(tmp_path, random, loads).build([SHIFT], no_progress)
    assert operations == decoder_operations(tiny_preset().vqvae)
    found = row.bundle.manifest.recipe
    assert found["weights"]["rounding"] == "nearest"
    assert found["calibration"]["images"] == 2
    # The demo model's statistics are of 32 images; a model's own, of those of the calibration.
    assert found["shift_and_sum"]["images"] == (32 if random else 2)
    assert row.notes[0] == "weights rounded to nearest"
    assert len(row.notes) == 1 + random
    again, same = bundles(tmp_path, random, loads).build([SHIFT], no_progress)
    assert (again[0].notes, same) == (row.notes, operations)
    assert loads == [1]


def test_learned_rounding_is_taken_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(load_recipe("brecq-w8a8"), calibration=CalibrationRecipe(images=2))
    monkeypatch.setattr(Rounding, "load", lambda path: rounded_down(recipe))
    (tmp_path / "brecq-w8a8.safetensors").touch()
    made = replace(bundles(tmp_path / "store", True), roundings=tmp_path)
    ((row,), _) = made.build([recipe], no_progress)
    assert row.bundle.manifest.recipe["weights"]["rounding"] == "reconstructed"
    assert row.notes == ()


@pytest.mark.parametrize("encoder", [True, False])
def test_a_bundle_has_an_encoder_where_one_is_asked_for(tmp_path: Path, encoder: bool) -> None:
    ((row,), _) = replace(bundles(tmp_path, False), encoder=encoder).build([load_recipe("fp32")], no_progress)
    assert ("encoder" in row.bundle.manifest.graphs) == encoder


def test_the_attention_that_is_lent_is_part_of_what_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of models with random weights; theirs is lent."""
    other = tmp_path / "other.npz"
    other.write_bytes(b"of another version")

    def digests() -> list[str]:
        return [bundles(tmp_path / "store", random)._key(SHIFT).digest for random in (True, False)]

    before = digests()
    monkeypatch.setattr("nextscale.paper.throughput_bundles.DEMO_ATTENTION", other)
    assert [new == old for new, old in zip(digests(), before, strict=True)] == [False, True]


def test_rounding_is_part_of_what_decides(tmp_path: Path) -> None:
    recipe = replace(load_recipe("brecq-w8a8"), calibration=CalibrationRecipe(images=2))
    made, found = replace(bundles(tmp_path / "store", True), roundings=tmp_path), rounded_down(recipe)
    paths = set()
    for report in ({}, {"other": 1}):
        replace(found, report=report).save(tmp_path / "brecq-w8a8.safetensors")
        ((row,), _) = made.build([recipe], no_progress)
        paths.add(row.bundle.path)
    assert len(paths) == 2


def test_what_is_kept_of_the_decoder_may_be_damaged(tmp_path: Path) -> None:
    table = bundles(tmp_path, random=False)
    table.build([], no_progress)
    (entry,) = table.store.entries()
    (entry.path / "data").write_text("{")
    with pytest.raises(NextscaleError, match=r"facts-tiny-decoder-\w+: damaged; remove this folder to make it again"):
        table.build([], no_progress)
