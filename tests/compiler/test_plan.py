"""Plans for the tiny model: what each recipe needs is decided, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_model import NUM_CLASSES, ONE_THREAD, PATCH_NUMS, L, V, no_progress, rounded_down, tiny_source

from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.compiler import _choose_ranges, _plan
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._plan import Plan, make_plan
from nextscale.compiler._rounders import require_rounding
from nextscale.compiler.options import BuildOptions
from nextscale.compiler.var_family import VARFamily
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import linear_layers
from nextscale.graph_passes.observe_inputs import Input, Observer
from nextscale.graph_passes.pipeline import quantize_stage
from nextscale.graph_passes.qparams import QuantizedWeight, Range, RangeRule
from nextscale.graph_passes.quantize_linear_pairs import PairRanges
from nextscale.graph_passes.recipe import (
    ActivationRecipe,
    AttentionRecipe,
    CalibrationRecipe,
    EqualizationRecipe,
    LayerChoice,
    Recipe,
    WeightRecipe,
    load_recipe,
    recipe_names,
)
from nextscale.models.var.layers import facts_of
from nextscale.models.var.sources import VARSource
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.rounding import LayerBits

S = len(PATCH_NUMS)
CALIBRATION = CalibrationRecipe(images=2)
BLOCK = ["attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1", "ffn.fc2"]
BLOCKS = [f"blocks.{i}.{part}" for i in range(2) for part in BLOCK]
BY_CLASS = ["blocks.0.ada_lin.1", "blocks.1.ada_lin.1", "head_nm.ada_lin.1"]
# By their endings: every linear layer.
ALL_FLOAT: dict[str, LayerChoice] = dict.fromkeys(
    ["q", "k", "v", "proj", "fc1", "fc2", "ada_lin.1", "word_embed", "head"], "float"
)


@pytest.fixture(scope="module")
def source() -> VARSource:
    return tiny_source()


def plan_of(source: VARSource, folder: Path, recipe: Recipe, progress: object = no_progress, **options: object) -> Plan:
    stage, decoder = build_stage_graph(source.var, source.vqvae.quantize), build_decoder_graph(source.vqvae)
    settings = BuildOptions(recipe, session=ONE_THREAD, **options)  # type: ignore[arg-type]
    integer = IntegerModel.decide(recipe, facts_of(source.var), settings.reduce_range)
    require_rounding(integer, settings)
    model = FloatModel.write(VARFamily(source), stage, decoder, folder)
    return make_plan(model, integer, settings, progress)  # type: ignore[arg-type]


def quantized(source: VARSource, plan: Plan) -> ir.Model:
    """The integer stage graph, checked."""
    model = quantize_stage(build_stage_graph(source.var, source.vqvae.quantize, plan.equalization), plan.stage)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def names(ranges: Mapping[str, object]) -> list[str]:
    return sorted(ranges)


def shapes(ranges: Mapping[str, Range]) -> set[tuple[int, ...]]:
    return {found.minimum.shape for found in ranges.values()} | {found.maximum.shape for found in ranges.values()}


def test_a_range_a_stage(source: VARSource, tmp_path: Path) -> None:
    plan = plan_of(source, tmp_path, Recipe("stage", calibration=CALIBRATION))
    assert names(plan.stage.ranges) == sorted([*BLOCKS, *BY_CLASS, "head", "word_embed"])
    for name, found in plan.stage.ranges.items():
        assert found.minimum.shape == found.maximum.shape == ((1,) if name in BY_CLASS else (S,)), name
    assert (plan.stage.pair_ranges, plan.stage.magnitudes) == ({}, None)
    assert plan.equalization.factors == {}
    assert plan.report == {"calibration": {"images": 2, "seed": 0, "cfg_scale": 4.0}}
    assert linear_layers(quantized(source, plan).graph) == []
    assert [path.name for path in tmp_path.iterdir()] == ["full_precision"]


def test_one_range_holds_those_of_all_stages(source: VARSource, tmp_path: Path) -> None:
    plans = []
    for choice in ("stage", "tensor"):
        folder = tmp_path / choice
        folder.mkdir()
        recipe = Recipe(choice, activations=ActivationRecipe(granularity=choice), calibration=CALIBRATION)
        plans.append(plan_of(source, folder, recipe).stage.ranges)
    assert shapes(plans[1]) == {(1,)}
    for name in BLOCKS:
        assert plans[1][name].minimum == plans[0][name].minimum.min()
        assert plans[1][name].maximum == plans[0][name].maximum.max()


@pytest.fixture(scope="module")
def widest(source: VARSource, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Pairs with all that was seen."""
    return plan_of(source, tmp_path_factory.mktemp("max"), pair_recipe("max"))


def pair_recipe(rule: RangeRule, bits: int = 8, alpha: float = 0.85) -> Recipe:
    return Recipe(
        "pair",
        activations=ActivationRecipe(bits, "pair", rule),
        equalization=EqualizationRecipe(alpha),
        calibration=CALIBRATION,
    )


def test_pairs_are_those_of_layers_that_see_both_rows(source: VARSource, widest: Plan) -> None:
    assert names(widest.stage.pair_ranges) == sorted(BLOCKS)
    assert names(widest.stage.ranges) == sorted([*BY_CLASS, "head", "word_embed"])
    parts = [part for pair in widest.stage.pair_ranges.values() for part in (pair.uncond, pair.difference)]
    assert {end.shape for part in parts for end in (part.minimum, part.maximum)} == {(S,)}
    assert all((part.minimum < part.maximum).all() for part in parts)
    assert linear_layers(quantized(source, widest).graph) == []


def test_layers_of_one_input_have_one_pair(widest: Plan) -> None:
    q, k, v = (widest.stage.pair_ranges[f"blocks.1.attn.{part}"] for part in "qkv")
    for other in (k, v):
        np.testing.assert_array_equal(other.uncond.minimum, q.uncond.minimum)
        np.testing.assert_array_equal(other.difference.maximum, q.difference.maximum)


def test_equalization_divides_the_ranges(source: VARSource, widest: Plan, tmp_path: Path) -> None:
    """Of all guided layers but fc2, whose input is what GELU leaves."""
    assert widest.equalization.factors
    plain = plan_of(source, tmp_path, pair_recipe("max", alpha=0))
    assert plain.equalization.factors == {}
    for name in BLOCKS:
        found, before = widest.stage.pair_ranges[name].uncond, plain.stage.pair_ranges[name].uncond
        if name.endswith("fc2"):
            np.testing.assert_array_equal(found.maximum, before.maximum)
        else:
            assert not np.array_equal(found.maximum, before.maximum), name


@pytest.mark.parametrize(("rule", "bits"), [("percentile", 8), ("mse", 8), ("mse", 4)])
def test_other_rules_narrow_the_ranges_of_pairs(
    source: VARSource, widest: Plan, tmp_path: Path, rule: RangeRule, bits: int
) -> None:
    seen: list[str] = []
    plan = plan_of(source, tmp_path, pair_recipe(rule, bits), lambda step, *further: seen.append(step))
    assert list(dict.fromkeys(seen)) == [
        "calibrating",
        "observing distributions",
        "calibrating the decoder",
        "observing what convolutions see",
        "calibrating the encoder",
    ]
    narrower = 0
    for name, pair in plan.stage.pair_ranges.items():
        outer = widest.stage.pair_ranges[name]
        for inner, whole in ((pair.uncond, outer.uncond), (pair.difference, outer.difference)):
            assert inner.minimum.dtype == inner.maximum.dtype == np.float32
            # The ends are interpolated in float64.
            assert (inner.minimum >= whole.minimum - 1e-6 * np.abs(whole.minimum)).all()
            assert (inner.maximum <= whole.maximum + 1e-6 * np.abs(whole.maximum)).all()
            narrower += int((inner.maximum < whole.maximum).sum() + (inner.minimum > whole.minimum).sum())
    # Eight bits keep nearly all.
    assert narrower > (0 if (rule, bits) == ("mse", 8) else len(BLOCKS) * S)
    quantized(source, plan)


def test_distributions_of_one_input_are_observed_once_for_all_its_layers(
    source: VARSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Input] = []
    observe = _choose_ranges.observe_histograms

    def watched(stage: ObservedStage, ranges: Mapping[Input, Range], *further: Any) -> Any:
        seen.extend(ranges)
        return observe(stage, ranges, *further)

    monkeypatch.setattr(_choose_ranges, "observe_histograms", watched)
    plan = plan_of(source, tmp_path, pair_recipe("percentile"))
    inputs = [layer.input for key in seen for layer in facts_of(source.var).layers if layer.name == key.node]
    assert len(seen) == 2 * len({*inputs} - {"word_embed", "head"}) + 2  # a pair has two parts
    for parts in zip(*(_ends(plan.stage.pair_ranges[f"blocks.0.attn.{part}"]) for part in "qkv"), strict=True):
        for other in parts[1:]:
            np.testing.assert_array_equal(other, parts[0])


def _ends(pair: PairRanges) -> list[NDArray[np.float32]]:
    return [end for part in (pair.uncond, pair.difference) for end in (part.minimum, part.maximum)]


def test_dynamic_ranges_are_not_observed(source: VARSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(
        "dynamic",
        activations=ActivationRecipe(granularity="token"),
        calibration=CALIBRATION,
        layers={"ffn.fc1": "image", "blocks.0.attn.q": "pair", "head": "stage", "word_embed": "float"},
    )
    observe, observed = _plan.observe, list[Observer]()

    def record(model: FloatModel, observers: Sequence[Observer], *further: Any) -> Any:
        observed.extend(observers)
        return observe(model, observers, *further)

    monkeypatch.setattr(_plan, "observe", record)
    plan = plan_of(source, tmp_path, recipe)
    assert names(plan.stage.pair_ranges) == ["blocks.0.attn.q"]
    assert names(plan.stage.ranges) == sorted([*BY_CLASS, "head"])
    pair = Input("blocks.0.attn.q").parts()
    assert observed == [Observer(Input("head"), "range"), *(Observer(part, "channels") for part in pair)]
    assert [layer.name for layer in linear_layers(quantized(source, plan).graph)] == ["word_embed"]


@pytest.mark.parametrize("granularity", ["image", "tensor"])
def test_shift_and_sum(source: VARSource, tmp_path: Path, granularity: str) -> None:
    """theta and places within the budget; static magnitudes of q, k and v where they are static."""
    attention = AttentionRecipe("integer", granularity, "row", "residual", budget=0.2)  # type: ignore[arg-type]
    recipe = Recipe("shift", attention=attention, calibration=CALIBRATION)
    plan = plan_of(source, tmp_path, recipe, count_overflow=True)
    shift = plan.stage.shift_and_sum
    assert shift is not None
    assert (shift.form, shift.count_overflow, len(shift.places)) == ("residual", True, S)
    told = plan.report["shift_and_sum"]
    assert (told["theta"], tuple(told["rows"])) == (shift.theta, tuple(shift.places))
    assert told["extra_share"] <= told["budget"] == 0.2
    if granularity == "image":
        assert plan.stage.magnitudes is None
    else:
        assert plan.stage.magnitudes is not None
        assert names(plan.stage.magnitudes) == ["blocks.0.attn.mix", "blocks.1.attn.mix"]
        for found in plan.stage.magnitudes.values():
            assert min(found.query, found.key, found.value) > 0
    quantized(source, plan)


def test_packed_weights(source: VARSource, tmp_path: Path) -> None:
    recipe = Recipe(
        "packed",
        weights=WeightRecipe(4, "mse", packed=True),
        activations=ActivationRecipe(6, "pair"),
        calibration=CALIBRATION,
    )
    model = quantized(source, plan_of(source, tmp_path, recipe))
    for name in [*BLOCKS, *BY_CLASS, "head", "word_embed"]:
        tensor = model.graph.initializers[f"{name}.weight.packed"].const_value
        assert tensor is not None
        assert tensor.dtype == ir.DataType.UINT4


def test_a_recipe_whose_layers_are_all_float(source: VARSource, tmp_path: Path) -> None:
    """Only the decoder is left to calibrate; the stage graph is full precision's, whatever the rule."""
    recipe = Recipe("float", activations=ActivationRecipe(range="mse"), calibration=CALIBRATION, layers=ALL_FLOAT)
    plan = plan_of(source, tmp_path, recipe)
    assert plan.stage.integer.layers == {}
    assert (plan.stage.ranges, plan.stage.pair_ranges) == ({}, {})
    assert plan.decoder is not None
    expected = ir.to_proto(build_stage_graph(source.var, source.vqvae.quantize)).SerializeToString()
    assert ir.to_proto(quantized(source, plan)).SerializeToString() == expected


@pytest.mark.parametrize("matching", ["none", "published"])
def test_token_maps_that_are_given_are_observed(source: VARSource, tmp_path: Path, matching: str) -> None:
    """And none are sampled, whatever the recipe's matching."""
    maps = np.random.default_rng(0).integers(0, V, (3, L))
    given = TokenMaps(np.arange(3) % NUM_CLASSES, maps, {"seed": 7})
    recipe = Recipe("given", calibration=CalibrationRecipe(2, matching))  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []

    def progress(step: str, done: int = 0, total: int = 0) -> None:
        seen.extend([(done, total)] if step == "calibrating" else [])

    plan = plan_of(source, tmp_path, recipe, progress, token_maps=given)
    assert seen == [(0, 3), (2, 3), (3, 3)]
    assert plan.report["calibration"] == {"images": 3, "seed": 0, "cfg_scale": 4.0, "token_maps": {"seed": 7}}


def test_matched_token_maps_are_sampled(source: VARSource, tmp_path: Path) -> None:
    plan = plan_of(source, tmp_path, Recipe("matched", calibration=CalibrationRecipe(4, "published")))
    told = plan.report["calibration"]
    assert told["images"] == 4
    assert told["token_maps"]["settings"]["matching"] == "published"


# Rounding

RECONSTRUCTED = Recipe("learned", weights=WeightRecipe(4, rounding="reconstructed"), calibration=CALIBRATION)


def test_reconstructed_weights_are_taken(source: VARSource, tmp_path: Path) -> None:
    """And those that no unit has are rounded to nearest."""
    plan = plan_of(source, tmp_path, RECONSTRUCTED, rounding=rounded_down(RECONSTRUCTED, source))
    stage = build_stage_graph(source.var, source.vqvae.quantize)
    floats = {x.name: x.weight.const_value for x in linear_layers(stage.graph)}
    for name in ("blocks.0.ffn.fc1", "blocks.1.ada_lin.1", "word_embed"):
        weight = floats[name]
        assert weight is not None
        nearest = QuantizedWeight.per_channel(weight.numpy(), 1, 4)
        found = plan.stage.rounder(name, weight.numpy())
        np.testing.assert_array_equal(found.scale, nearest.scale)
        down = nearest.codes.astype(np.int64) - found.codes
        assert set(np.unique(down)) == ({0, 1} if name == "blocks.0.ffn.fc1" else {0})
    quantized(source, plan)


def test_how_codes_are_stored_and_a_budget_need_not_be_the_same(source: VARSource, tmp_path: Path) -> None:
    """They are not what the rounding was learned for; nor are a name, a description and the token maps."""
    other = replace(
        RECONSTRUCTED,
        name="other",
        description="Another.",
        weights=replace(RECONSTRUCTED.weights, packed=True),
        attention=AttentionRecipe(budget=0.5),
        calibration=CalibrationRecipe(images=3),
    )
    quantized(source, plan_of(source, tmp_path, other, rounding=rounded_down(RECONSTRUCTED, source)))


def test_reconstructed_weights_that_are_missing(source: VARSource, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="recipe learned: its weights are reconstructed; run `nextscale reconstr"):
        plan_of(source, tmp_path, RECONSTRUCTED)
    assert not list(tmp_path.iterdir())


def test_reconstructed_weights_that_nobody_asked_for(source: VARSource, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match="recipe nearest: rounds weights to nearest, so it takes no --rounding"):
        plan_of(source, tmp_path, Recipe("nearest"), rounding=rounded_down(RECONSTRUCTED, source))
    assert not list(tmp_path.iterdir())


OTHERS: dict[str, tuple[dict[str, object], str]] = {
    "bits": ({"weights": WeightRecipe(8, rounding="reconstructed")}, "with weights.bits 8 instead of 4; give one"),
    "range": ({"weights": WeightRecipe(4, "mse", "reconstructed")}, "with weights.range mse instead of max; give one"),
    "activations": (
        {"activations": ActivationRecipe(6, "pair")},
        "with activations.bits 6 instead of 8, activations.granularity pair instead of stage; give one",
    ),
    "attention": ({"attention": AttentionRecipe("integer")}, "with attention.products integer instead of float;"),
    "equalization": ({"equalization": EqualizationRecipe(0.5)}, "with equalization.alpha 0.5 instead of 0.0; give one"),
    "layers": ({"layers": {"ffn.fc2": "float"}}, "with layers.ffn.fc2 float instead of unset; give one"),
}


@pytest.mark.parametrize(("changed", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_reconstructed_weights_of_another_recipe(
    source: VARSource, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    """Refused before anything is calibrated, by what differs."""
    other = replace(RECONSTRUCTED, name="other", **changed)  # type: ignore[arg-type]
    expected = re.escape(f"recipe learned: the rounding is that of other, {message}")
    with pytest.raises(NextscaleError, match=expected) as caught:
        plan_of(source, tmp_path, RECONSTRUCTED, rounding=rounded_down(other, source))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_rounding_from_before_a_word_was_known(source: VARSource) -> None:
    """It is one of the word's default."""
    known = RECONSTRUCTED.as_dict()
    attention = {key: value for key, value in known["attention"].items() if key != "cross"}
    rounding = replace(rounded_down(RECONSTRUCTED, source), recipe={**known, "attention": attention})
    integer = IntegerModel.decide(RECONSTRUCTED, facts_of(source.var))
    require_rounding(integer, BuildOptions(RECONSTRUCTED, rounding=rounding))


def test_the_rounding_of_a_recipe_that_has_no_such_settings(source: VARSource, tmp_path: Path) -> None:
    """A file may say anything."""
    rounding = replace(rounded_down(RECONSTRUCTED, source), recipe={"name": "odd", "weights": {"bits": 4}, "layers": 3})
    with pytest.raises(NextscaleError, match=r"that of odd, with weights\.range unset instead of max, .*; give one"):
        plan_of(source, tmp_path, RECONSTRUCTED, rounding=rounding)


def test_reconstructed_weights_of_other_layers(source: VARSource, tmp_path: Path) -> None:
    """Too few, too many, or of another shape: another model's, whatever the recipe."""
    whole, head = rounded_down(RECONSTRUCTED, source), {"head": LayerBits(np.zeros((V, 32), np.bool_), "")}
    for layers, message in (
        ({name: bits for name, bits in whole.layers.items() if name != "head"}, "head unset instead of (128, 64);"),
        ({**whole.layers, **head}, "head (128, 32) instead of (128, 64);"),
        (rounded_down(RECONSTRUCTED, tiny_source(depth=3)).layers, "blocks.2.attn.q (64, 64) instead of unset and 5 m"),
    ):
        with pytest.raises(NextscaleError, match=re.escape(f"that of learned for another model, with {message}")):
            plan_of(source, tmp_path, RECONSTRUCTED, rounding=replace(whole, layers=layers))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("alpha", "factors", "message"),
    [
        (0.0, {"head": 64}, "head (64,) instead of unset;"),
        (0.5, {}, "blocks.0.attn.qkv unset instead of (64,) and 6 more;"),
        (0.5, {f"blocks.{i}.{x}": 64 for i in range(2) for x in ("attn.qkv", "attn.proj", "ffn.fc1")} | {"head": 32},
         "head (32,) instead of (64,);"),
    ],
    ids=["of no equalization", "missing", "of another width"],
)  # fmt: skip
def test_factors_of_other_layers(
    source: VARSource, tmp_path: Path, alpha: float, factors: dict[str, int], message: str
) -> None:
    recipe = replace(RECONSTRUCTED, equalization=EqualizationRecipe(alpha))
    found = {name: np.ones(width, np.float32) for name, width in factors.items()}
    with pytest.raises(NextscaleError, match=re.escape(f"for another model, with {message}")):
        plan_of(source, tmp_path, recipe, rounding=replace(rounded_down(recipe, source), factors=found))
    assert not list(tmp_path.iterdir())


def test_reconstructed_weights_of_another_model(source: VARSource, tmp_path: Path) -> None:
    """Found when the weights are rounded, by their sums."""
    plan = plan_of(source, tmp_path, RECONSTRUCTED, rounding=rounded_down(RECONSTRUCTED, tiny_source(seed=1)))
    with pytest.raises(NextscaleError, match="has other weights or another equalization"):
        quantized(source, plan)


# Layers


@pytest.mark.parametrize("name", ["ffn.fc3", "c2", "blocks.0", "blocks.2.ffn.fc2", ""])
def test_a_layer_that_the_model_does_not_have(source: VARSource, name: str) -> None:
    ends = "ada_lin.1, head_nm.ada_lin.1, word_embed, attn.q, attn.k, attn.v, attn.proj, ffn.fc1, ffn.fc2, head"
    expected = re.escape(f'recipe mine: layers."{name}" is not a linear layer of the model; expected one of {ends}, or')
    with pytest.raises(NextscaleError, match=expected):
        IntegerModel.decide(Recipe("mine", layers={"head": "float", name: "float"}), facts_of(source.var))


@pytest.mark.parametrize("shared_aln", [False, True])
def test_layers_by_the_end_of_their_names(shared_aln: bool) -> None:
    model = tiny_source(shared_aln=shared_aln)
    facts = facts_of(model.var)
    floats = IntegerModel.decide(Recipe("float", layers=ALL_FLOAT), facts).layers
    assert list(floats) == (["shared_ada_lin.1"] * shared_aln)
    for recipe in map(load_recipe, recipe_names()):
        IntegerModel.decide(recipe, facts)
    one = IntegerModel.decide(Recipe("one", layers={"blocks.1.attn.k": "float"}), facts)
    assert "blocks.1.attn.k" not in one.layers
