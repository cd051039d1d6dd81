"""Reconstruction on a tiny model, and the file that keeps what it found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_model import NUM_CLASSES, PATCH_NUMS, L, V, tiny_models

from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.qparams import RangeRule, WeightQParams
from nextscale.graph_passes.recipe import EqualizationRecipe, Recipe, load_recipe
from nextscale.models.equalization import Equalization
from nextscale.models.var.folded import FoldedVAR
from nextscale.models.var.layers import linear_shapes
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.simulation._soft_rounding import SoftRounding, undecided
from nextscale.simulation._unit_store import UnitStore
from nextscale.simulation.reconstruct import ReconstructionSettings, Step, reconstruct, units
from nextscale.simulation.rounding import LayerBits, Rounding, codes_of, nearest_up, weight_sha256
from nextscale.simulation.simulated_agreement import simulated_agreement
from nextscale.simulation.simulated_attention import all_places
from nextscale.simulation.simulated_var import SimulatedVAR
from nextscale.simulation.var_images import VARImages

N = 8
RNG = np.random.default_rng(0)
# The one test that looks at what is gained needs enough of them.
MANY = 64
LABELS, MAPS = RNG.integers(0, NUM_CLASSES, MANY), RNG.integers(0, V, (MANY, L))
FEW = ReconstructionSettings(iterations=3, batch_size=4)


def learn(recipe: Recipe, settings: ReconstructionSettings = FEW, images: int = N, **options: Any) -> Rounding:
    var, vqvae = tiny_models()
    if recipe.attention.shift_and_sum != "off":
        places = all_places([pn * pn for pn in PATCH_NUMS])
        options["shift_and_sum"] = ShiftAndSum(recipe.attention.shift_and_sum, 0.1, places)
    seen = VARImages(var, vqvae.quantize, LABELS[:images], MAPS[:images])
    return reconstruct(seen, recipe, settings, **options)


def floats(layer: str, factors: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    found = FoldedVAR(tiny_models()[0], Equalization(factors or {})).weight(layer)
    return (found if isinstance(found, torch.Tensor) else found()).numpy()


@pytest.fixture(scope="module")
def learned() -> Rounding:
    return learn(load_recipe("brecq-w4a8"), replace(FEW, iterations=120, batch_size=8), images=MANY)


def test_every_unit_is_better_than_rounding_to_nearest(learned: Rounding) -> None:
    found = learned.report["units"]
    assert list(found) == ["blocks.0.attn", "blocks.0.ffn", "blocks.1.attn", "blocks.1.ffn", "head"]
    assert max(unit["relative"] for unit in found.values()) < 0.85
    assert learned.report["kept"] == "reconstructed"
    assert learned.report["kl_reconstructed"] < 0.8 * learned.report["kl_nearest"]
    assert (learned.report["images"], learned.report["held_out_images"]) == (56, 8)


def test_the_codes_give_the_reported_agreement(learned: Rounding) -> None:
    var, vqvae = tiny_models()
    codes = {layer: learned.codes(layer, floats(layer)) for layer in learned.layers}
    simulated = SimulatedVAR(var, load_recipe("brecq-w4a8"), codes=codes)
    found = simulated_agreement(VARImages(var, vqvae.quantize, LABELS[-8:], MAPS[-8:]), simulated)
    assert found.kl == pytest.approx(learned.report["kl_reconstructed"], rel=1e-3)


def test_a_code_is_the_floor_or_one_more(learned: Rounding) -> None:
    weight = floats("blocks.0.ffn.fc1")
    qparams = WeightQParams.choose(weight, 0, 4, "percentile")
    codes = learned.codes("blocks.0.ffn.fc1", weight)
    floor = np.floor(weight / qparams.scale[:, None])
    low, high = (np.clip(floor + up, qparams.qmin[:, None], qparams.qmax[:, None]) for up in (0, 1))
    assert ((codes == low) | (codes == high)).all()
    assert (codes != qparams.quantize(weight, 0)).any()


def test_bits_survive_the_file(learned: Rounding, tmp_path: Path) -> None:
    path = tmp_path / "rounding.safetensors"
    learned.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = Rounding.load(path)
    assert found.recipe == json.loads(json.dumps(learned.recipe))
    assert found.report == json.loads(json.dumps(learned.report))
    assert found.layers.keys() == learned.layers.keys()
    for name, layer in learned.layers.items():
        np.testing.assert_array_equal(found.layers[name].up, layer.up)
        np.testing.assert_array_equal(found.codes(name, floats(name)), learned.codes(name, floats(name)))
    size = path.stat().st_size
    assert size < sum(layer.up.size for layer in learned.layers.values()) / 8 + 20_000


def test_the_seed_decides_everything(learned: Rounding) -> None:
    first, same = (learn(load_recipe("ours-w4a6")) for _ in range(2))
    for name, layer in first.layers.items():
        np.testing.assert_array_equal(layer.up, same.layers[name].up)
    assert first.report["kl_reconstructed"] == same.report["kl_reconstructed"]


@pytest.mark.parametrize("method", ["brecq", "litevar", "ours", "ours-litevar"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_recipes_of_table_1(method: str, bits: str) -> None:
    found = learn(load_recipe(f"{method}-{bits}"), replace(FEW, iterations=2))
    assert ("blocks.0.ffn.fc2" in found.layers) == ("litevar" not in method)
    assert len(found.layers) == 2 * (6 if "litevar" not in method else 5) + 1
    figures = found.report["kl_nearest"], found.report["kl_reconstructed"]
    assert found.report["kept"] == ("reconstructed" if figures[1] < figures[0] else "nearest")


def test_static_ranges_and_equalization(tmp_path: Path) -> None:
    recipe = load_recipe("brecq-w6a6")
    recipe = replace(
        recipe,
        activations=replace(recipe.activations, granularity="stage"),
        attention=replace(recipe.attention, granularity="tensor", weights="row"),
        equalization=EqualizationRecipe(0.5),
    )
    found = learn(recipe)
    assert found.factors.keys() == {
        *(f"blocks.{i}.{x}" for i in (0, 1) for x in ("attn.qkv", "attn.proj", "ffn.fc1")),
        "head",
    }
    found.save(tmp_path / "file")
    loaded = Rounding.load(tmp_path / "file")
    factors = {name: torch.from_numpy(values) for name, values in loaded.factors.items()}
    for layer in loaded.layers:
        assert loaded.codes(layer, floats(layer, factors)).dtype == np.int8
    with pytest.raises(NextscaleError, match=r"blocks\.0\.attn\.q has other weights or another equalization"):
        loaded.codes("blocks.0.attn.q", floats("blocks.0.attn.q"))


def test_worse_than_nearest_keeps_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SoftRounding, "up", lambda self: np.ones(self.floor.shape, np.bool_))
    found = learn(load_recipe("brecq-w4a8"))
    assert found.report["kept"] == "nearest"
    weight = floats("head")
    qparams = WeightQParams.choose(weight, 0, 4, "percentile")
    np.testing.assert_array_equal(found.codes("head", weight), qparams.quantize(weight, 0))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rule", ["max", "percentile", "mse"])
def test_bits_of_nearest_are_rounding_to_nearest(bits: int, rule: RangeRule) -> None:
    weight = np.random.default_rng(bits).normal(size=(6, 40)).astype(np.float32)
    weight[0] = np.abs(weight[0])
    qparams = WeightQParams.choose(weight, 0, bits, rule)
    np.testing.assert_array_equal(codes_of(weight, qparams, nearest_up(weight, qparams)), qparams.quantize(weight, 0))


def test_soft_rounding_starts_at_the_float_weight() -> None:
    var, _ = tiny_models()
    linear = SimulatedVAR(var, load_recipe("brecq-w4a8")).linears["head"]
    assert linear.qparams is not None
    soft = SoftRounding(linear.exact, linear.qparams)
    share = soft.share_up()
    inside = (linear.exact > soft.scale * soft.qmin) & (linear.exact < soft.scale * soft.qmax)
    torch.testing.assert_close(soft.weight(share)[inside], linear.exact[inside], rtol=1e-4, atol=1e-6)
    assert undecided(torch.tensor([0.0, 1.0]), 2.0) == 0
    assert undecided(torch.tensor([0.5]), 20.0) == 1


def test_units_have_only_integer_layers() -> None:
    var, _ = tiny_models()
    layers = {unit.name: unit.layers for unit in units(SimulatedVAR(var, load_recipe("litevar-w8a8")), 4.0)}
    assert layers["blocks.1.ffn"] == ("blocks.1.ffn.fc1",)
    assert layers["blocks.1.attn"] == tuple(f"blocks.1.attn.{part}" for part in ("q", "k", "v", "proj"))
    assert layers["head"] == ("head",)


def test_every_layer_that_is_learned_is_in_a_unit() -> None:
    """All but adaLN's and word_embed."""
    for options in ({}, {"shared_aln": True}):
        var, _ = tiny_models(**options)
        layers = [layer for unit in units(SimulatedVAR(var, load_recipe("brecq-w8a8")), 4.0) for layer in unit.layers]
        names = [name for name in linear_shapes(var.config) if "ada_lin" not in name and name != "word_embed"]
        assert layers == names


class Stopped(Exception):
    """Ctrl-C."""


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    recipe, work, seen = load_recipe("brecq-w4a6"), tmp_path / "work", list[str]()

    def stop(step: Step) -> None:
        if step.unit == "blocks.1.attn":
            raise Stopped

    with pytest.raises(Stopped):
        learn(recipe, work=work, on_step=stop)
    assert sorted(p.name for p in work.iterdir()) == ["blocks.0.attn.npz", "blocks.0.ffn.npz", "settings.json"]
    found = learn(recipe, work=work, on_step=lambda step: seen.append(step.unit))
    assert set(seen) == {"blocks.1.attn", "blocks.1.ffn", "head"}
    whole = learn(recipe)
    for name, layer in whole.layers.items():
        np.testing.assert_array_equal(found.layers[name].up, layer.up)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    learn(load_recipe("brecq-w4a6"), work=tmp_path)
    expected = "was begun with recipe.name brecq-w4a6 instead of brecq-w4a4, .* to begin again"
    with pytest.raises(NextscaleError, match=expected):
        learn(load_recipe("brecq-w4a4"), replace(FEW, seed=1), work=tmp_path)


UP = np.ones((2, 3), np.bool_)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", r"damaged, or no \.npz: .*; remove it"),
        (b"", r"damaged, or no \.npz: .*; remove it"),
        (b"PK\x03\x04" + bytes(100), r"damaged, or no \.npz: File is not a zip file; remove it"),
        ({"up": UP}, r"no array report; expected up and report; remove it"),
        ({"report": "{}"}, r"no array up; .*; remove it"),
        ({"up": UP, "report": "{"}, r"damaged: not a unit's rounding and report; remove it"),
        ({"up": UP, "report": "[]"}, r"damaged: not a unit's rounding and report; remove it"),
        ({"up": UP.astype(np.float32), "report": "{}"}, r"damaged: not a unit's rounding and report; remove it"),
    ],
    ids=["text", "empty", "half an archive", "no report", "no layer", "no JSON", "a list", "floats"],
)
def test_a_damaged_unit_is_refused(content: bytes | dict[str, Any], message: str, tmp_path: Path) -> None:
    store, path = UnitStore(tmp_path, {}), tmp_path / "head.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(NextscaleError, match=rf"head\.npz: .*{message}"):
        store.load("head", {"up": (2, 3)})


def test_what_cannot_be_reconstructed_is_refused() -> None:
    for name in ("fp32", "rtn-w4a6"):
        with pytest.raises(NextscaleError, match=f"recipe {name} rounds weights to nearest"):
            learn(load_recipe(name))
    var, vqvae = tiny_models()
    with pytest.raises(NextscaleError, match="at least 2 images"):
        reconstruct(VARImages(var, vqvae.quantize, LABELS[:1], MAPS[:1]), load_recipe("brecq-w4a6"), FEW)


def test_a_layer_that_is_not_there(learned: Rounding) -> None:
    with pytest.raises(NextscaleError, match="it has no layer word_embed"):
        learned.codes("word_embed", floats("word_embed"))


def small() -> Rounding:
    weight = np.ones((2, 5), np.float32)
    return Rounding({"head": LayerBits(weight > 0, weight_sha256(weight))}, {}, load_recipe("brecq-w4a6").as_dict())


def test_files_that_are_no_rounding(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(NextscaleError, match="cannot be read as a rounding file"):
        Rounding.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(NextscaleError, match="cannot be read as a rounding file"):
        Rounding.load(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(NextscaleError, match=r"expected nextscale\.rounding/1"):
        Rounding.load(path)


@pytest.mark.parametrize(
    "document",
    ["", "[]", '{"layers": {"head": {"shape": [2, 5], "sha256": ""}}}', '{"layers": {"head": {"shape": [2, 9]}}}',
     "[" * 100_000, '{"layers": []}', *(f'{{"layers": {{"head": {{"shape": {s}, "sha256": ""}}}}}}' for s in (
        "[8589934592, 8589934592]", "[-2, -5]", "[0, 5]", "[2.0, 5]", "[2, 5, 1]", '"25"',
    ))],
    ids=lambda document: document[:60],
)  # fmt: skip
def test_damaged_documents_are_refused(document: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    small().save(path)
    save_file(load_file(path), path, {"schema": "nextscale.rounding/1", "rounding": document})
    with pytest.raises(NextscaleError, match="a damaged rounding file"):
        Rounding.load(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("bits.head", torch.zeros(2, dtype=torch.bool), "bits.head: expected U8, found BOOL"),
        ("bits.head", torch.zeros(2, dtype=torch.bfloat16), "bits.head: expected U8, found BF16"),
        ("equalization.x", torch.ones(5, dtype=torch.float8_e4m3fn), "equalization.x: expected F32, found F8_E4M3"),
        ("equalization.x", torch.ones(5, dtype=torch.float64), "equalization.x: expected F32, found F64"),
        ("equalization.x", torch.ones(5, dtype=torch.complex64), "equalization.x: expected F32, found C64"),
        ("equalization.x", torch.ones(5, 1), "equalization.x: expected finite numbers above 0, one for each channel"),
        ("equalization.x", torch.tensor([1, torch.nan]), "equalization.x: expected finite numbers above 0"),
        ("equalization.x", torch.tensor([1.0, 0.0]), "equalization.x: expected finite numbers above 0"),
    ],
    ids=lambda value: "" if isinstance(value, torch.Tensor) else value,
)
def test_tensors_of_other_types_are_refused(name: str, tensor: torch.Tensor, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    small().save(path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {known: file.get_tensor(known) for known in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file({**tensors, name: tensor}, path, metadata)
    with pytest.raises(NextscaleError, match=re.escape(message)):
        Rounding.load(path)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        small().save(tmp_path / "no folder" / "file")


def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        Rounding.load(make_fifo(tmp_path / "rounding.safetensors"))
