"""Recipes with learned weights on a tiny Infinity: learned in one go, interrupted and resumed, and planned for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from infinity_bundle import SIZES, tiny_infinity_source
from learning_steps import BUILDING, FIRST, PREPARING, SAMPLING, THETA, Interrupter
from tiny_model import ONE_THREAD, no_progress, tiny_recipe

from nextscale.compiler import BuildOptions, build, learn_bundle
from nextscale.compiler._float_model import FloatModel
from nextscale.compiler._plan import make_plan
from nextscale.compiler._rounders import require_rounding
from nextscale.compiler.infinity_family import InfinityFamily
from nextscale.compiler.learn import learning_folder
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.pipeline import fuse_stage, quantize_stage
from nextscale.graph_passes.recipe import Recipe
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._verify import verify
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import LayerBits, Rounding, weight_sha256

FEW = ReconstructionSettings(iterations=2, batch_size=2)
LEARNING = [f"learning blocks.{i}.{part}" for i in (0, 1) for part in ("sa", "ca", "ffn")] + ["learning head"]


def affordable(name: str) -> Recipe:
    """With few images, and the budget that shift-and-sum of a model with so little to compute needs."""
    recipe = tiny_recipe(name)
    return replace(recipe, attention=replace(recipe.attention, budget=0.2))


def learn(out: Path, progress: Interrupter, settings: ReconstructionSettings = FEW) -> tuple[Bundle, Rounding]:
    options = BuildOptions(affordable("ours-litevar-w4a6"), session=ONE_THREAD, encoder=False, text_encoder=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "AGREEMENT_IMAGES", 3)
        return learn_bundle(tiny_infinity_source(), out, options, settings, "cpu", progress)


def test_learned_with_interruptions(tmp_path: Path) -> None:
    """Each run goes on where the one before was stopped; theta, bits and rounding are the bundle's."""
    out = tmp_path / "learned"
    runs = [
        ((SAMPLING, 2), [FIRST, SAMPLING]),
        ((THETA, 2), [SAMPLING, THETA]),
        ((LEARNING[4], 1), [THETA, PREPARING, *LEARNING[:5]]),
        (None, [PREPARING, *LEARNING[4:], BUILDING]),
    ]
    for i, (stop, expected) in enumerate(runs):
        progress = Interrupter(*stop or ())
        going_on = [f"going on from {learning_folder(out)}"] if i else []
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                learn(out, progress)
        else:
            bundle, rounding = learn(out, progress)
        assert progress.seen[: len(going_on) + len(expected)] == going_on + expected
    assert list(tmp_path.iterdir()) == [out]
    recipe = Bundle.open(out, verify_hashes=True).manifest.recipe
    assert (recipe["name"], recipe["calibration"]["images"]) == ("ours-litevar-w4a6", 5)
    assert recipe["calibration"]["token_maps"]["settings"]["matching"] == "published"
    chosen = recipe["shift_and_sum"]
    assert rounding.report["shift_and_sum"] == {"theta": chosen["theta"], "places": chosen["rows"]}
    assert (rounding.report["images"], rounding.report["held_out_images"]) == (4, 1)
    integer = {name.removesuffix(".weight") for name in recipe["kernels"]["stage"]}
    assert "blocks.0.ffn.fc2" not in integer  # LiteVAR's rule
    assert {"blocks.0.ca.k", "blocks.1.sa.q", "blocks.1.ffn.fc1"} <= integer
    assert verify(bundle, ONE_THREAD).passed


def test_another_model_in_the_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        learn(out, Interrupter(FIRST))
    options = BuildOptions(affordable("ours-litevar-w4a6"), session=ONE_THREAD)
    source = replace(tiny_infinity_source(), prompts=("a red apple", "two dogs"))
    with pytest.raises(NextscaleError, match=r"was begun with model\.prompts [0-9a-f]+ instead of [0-9a-f]+; give the"):
        learn_bundle(source, out, options, FEW, "cpu", no_progress)


def test_without_a_text_encoder_nothing_is_learned(tmp_path: Path) -> None:
    options = BuildOptions(affordable("brecq-w4a6"), session=ONE_THREAD)
    with pytest.raises(NextscaleError, match="give the text encoder's folder with --text"):
        learn_bundle(tiny_infinity_source(text=None), tmp_path / "out", options, FEW, "cpu", no_progress)
    assert not list(tmp_path.iterdir())


# Every method's graphs


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    family = InfinityFamily(tiny_infinity_source())
    return FloatModel.write(family, family.stage_graph(), family.decoder_graph(), tmp_path_factory.mktemp("float"))


def rounded_down(recipe: Recipe, model: FloatModel) -> Rounding | None:
    """What reconstruction might find, with an equalization that changes nothing."""
    if not recipe.learned:
        return None
    integer, layers = IntegerModel.decide(recipe, model.family.facts()), {}
    for layer in find_layers(model.family.stage_graph().graph, {layer.name for layer in integer.learned()}):
        assert layer.weight.const_value is not None
        rows = np.ascontiguousarray(layer.weight.const_value.numpy().T)
        layers[layer.name] = LayerBits(np.zeros(rows.shape, np.bool_), weight_sha256(rows))
    shapes = {layer.name: layer.shape for layer in integer.facts.layers}
    equalized = integer.facts.equalizable() if recipe.equalization.alpha > 0 else {}
    factors = {name: np.ones(shapes[readers[0]][1], np.float32) for name, readers in equalized.items()}
    return Rounding(layers, factors, recipe.as_dict())


METHODS = [
    "rtn-w4a6", "brecq-w4a8", "litevar-w6a6", "ours-w4a4", "ours-litevar-w8a8", "default-w4a4", "nearest-w4a6",
    "static-w8a8",
]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_graphs_of_every_method(name: str, float_model: FloatModel, tmp_path: Path) -> None:
    recipe = affordable(name)
    options = BuildOptions(recipe, session=ONE_THREAD, rounding=rounded_down(recipe, float_model), encoder=False)
    family = float_model.family
    integer = IntegerModel.decide(recipe, family.facts())
    require_rounding(integer, options)
    plan = make_plan(replace(float_model, work=tmp_path), integer, options, no_progress)
    graph = family.stage_graph(plan.equalization)
    stock = quantize_stage(graph, plan.stage)
    onnx.checker.check_model(ir.to_proto(stock), full_check=True)
    names = [str(value.name) for value in stock.graph.initializers.values()]
    for layer in integer.layers:
        assert any(found.startswith(f"{layer}.weight.") for found in names), layer
    operators = {node.op_type for node in fuse_stage(graph, plan.stage, stock).graph}
    assert ("IntegerAttention" in operators) == (integer.attention is not None)
    shift = plan.stage.shift_and_sum
    assert (shift is None) == (not name.startswith("ours"))
    assert shift is None or len(shift.places) == max(size.num_stages for size in SIZES)
