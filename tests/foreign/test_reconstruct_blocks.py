"""Blocks in torch beside the integer graph, and what reconstruction makes of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.foreign import reconstruct_blocks as reconstruction
from nextscale.foreign.normalize import normalize
from nextscale.foreign.plan import Plan, make_plan
from nextscale.foreign.quantize_model import LEARNING, QuantizeOptions, foreign_recipe, quantize
from nextscale.foreign.reconstruct_blocks import ReconstructedBlock, reconstruct_blocks
from nextscale.foreign.residual_blocks import residual_blocks
from nextscale.foreign.samples import Samples, graph_inputs, read_samples
from nextscale.foreign.simulated_block import SimulatedBlock
from nextscale.foreign.survey import survey
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.recipe import AttentionRecipe, Recipe, load_recipe
from nextscale.runtime._session import SessionOptions

from .block_model import TEXT, TOKENS, WIDTH, block, block_proto, samples

ONE = SessionOptions(threads=1)
SHORT = replace(LEARNING, iterations=200)
# A head is a row of the batch: operands of three axes.
THREE = (
    TEXT.replace(
        "q = Transpose <perm = [0, 2, 1, 3]> (q1)",
        "q2 = Transpose <perm = [0, 2, 1, 3]> (q1)\n q = Reshape (q2, three)",
    )
    .replace(
        "k = Transpose <perm = [0, 2, 3, 1]> (k1)",
        "k2 = Transpose <perm = [0, 2, 3, 1]> (k1)\n k = Reshape (k2, turned)",
    )
    .replace(
        "v = Transpose <perm = [0, 2, 1, 3]> (v1)",
        "v2 = Transpose <perm = [0, 2, 1, 3]> (v1)\n v = Reshape (v2, three)",
    )
    .replace(
        "m1 = Transpose <perm = [0, 2, 1, 3]> (m0)",
        "m4 = Reshape (m0, four)\n m1 = Transpose <perm = [0, 2, 1, 3]> (m4)",
    )
)
SHAPES = {"three": np.array([-1, 6, 4]), "turned": np.array([-1, 4, 6]), "four": np.array([-1, 2, 6, 4])}
MASKED = TEXT.replace("s = Mul (s0, half)", "s3 = Mul (s0, half)\n s = Add (s3, mask)")
MASK = {"mask": np.triu(np.full((TOKENS, TOKENS), -np.inf, np.float32), 1)}
FORMS = {"four axes": (TEXT, {}), "three axes": (THREE, SHAPES), "a mask": (MASKED, MASK)}


def planned(model: ir.Model, recipe: Recipe, count: int, work: Path) -> tuple[Plan, Samples]:
    given = read_samples(samples(count), graph_inputs(model.graph))
    plan, _ = make_plan(model, survey(model), recipe, given, work, ONE)
    return plan, given


def value_of(model: ir.Model, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    model = model.clone()
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs if value.name == name]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return found


def attentions() -> list[AttentionRecipe]:
    kinds = product(("uniform", "row", "log2", "log2-row"), ("tensor", "image"), ("off", "residual"))
    return [AttentionRecipe("integer", how, kind, form, budget=0.04) for kind, how, form in kinds]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activations", ["tensor", "image", "token"])
def test_a_block_in_torch_gives_what_the_integer_graph_gives(tmp_path: Path, form: str, activations: str) -> None:
    """By every quantizer of attention, on most samples: on some, sums in another order move a code to the next."""
    text, further = FORMS[form]
    model = normalize(block(text, **further)).model
    base = load_recipe("rtn-w6a6")
    for attention in attentions():
        recipe, _ = foreign_recipe(
            replace(base, attention=attention, activations=replace(base.activations, granularity=activations))
        )
        plan, given = planned(model, recipe, 9, tmp_path)
        (first, _), integer = residual_blocks(model.graph, set(plan.integer.layers)), plan.apply(model)
        simulated = SimulatedBlock(first, plan, attention_patterns(model.graph))
        coded = {name: plan.rounder(name, exact.numpy()) for name, exact in simulated.weights.items()}
        decoded = {name: torch.from_numpy(of_one.codes * of_one.scale) for name, of_one in coded.items()}
        off, lost = [], []
        for feed in given:
            x, exact = feed["x"], value_of(model, "r", feed["x"])
            np.testing.assert_allclose(simulated.exact([torch.from_numpy(x)]), exact, rtol=1e-4, atol=1e-5)
            expected = value_of(integer, "r", x)
            off.append(np.abs(simulated.quantized([torch.from_numpy(x)], decoded).numpy() - expected).max())
            lost.append(np.abs(expected - exact).max())
        assert min(lost) > 1e-2, attention
        assert np.median(off) < 1e-5, attention


def reconstructed(
    model: ir.Model, recipe: str, work: Path, count: int = 24
) -> tuple[Plan, Plan, list[ReconstructedBlock], Samples]:
    chosen, _ = foreign_recipe(recipe)
    plan, given = planned(model, chosen, count, work)
    after, blocks = reconstruct_blocks(model, plan, given, work, ONE, SHORT, lambda step: None)
    return plan, after, blocks, given


@pytest.mark.parametrize("recipe", ["brecq-w4a4", "ours-w4a4"])
def test_what_is_kept_is_best_of_three_and_nearer_than_to_nearest(tmp_path: Path, recipe: str) -> None:
    model = normalize(block()).model
    before, after, blocks, _ = reconstructed(model, recipe, tmp_path)
    assert [one.layers for one in blocks] == [("q0", "k0", "v0", "p"), ("h0", "f")]
    layers = {layer.name: layer for layer in find_layers(model.graph, set(before.integer.layers))}
    for one in blocks:
        assert one.errors["nearest"] == 1
        assert one.kept == min(one.errors, key=lambda kept: one.errors[kept])
        for name in one.layers:
            tensor = layers[name].weight.const_value
            assert tensor is not None
            weight = tensor.numpy()
            codes, own = (plan.rounder(name, weight) for plan in (after, before))
            np.testing.assert_array_equal(codes.scale, own.scale)
            assert (np.abs(codes.codes * codes.scale - weight) <= codes.scale * 1.001).mean() > 0.95
            if one.kept == "layers":
                np.testing.assert_array_equal(codes.codes, own.codes)
    assert any(one.kept == "block" for one in blocks)


def test_the_model_loses_less_on_samples_that_were_not_seen(tmp_path: Path) -> None:
    model = normalize(block()).model
    before, after, blocks, _ = reconstructed(model, "brecq-w4a4", tmp_path, 48)
    x = samples(64, seed=9)["x"]
    exact = value_of(model, "r", x)
    own, whole = (np.square(value_of(plan.apply(model), "r", x) - exact).mean() for plan in (before, after))
    assert blocks[0].kept == "block"
    assert whole < 0.95 * own


def test_the_same_samples_give_the_same_codes(tmp_path: Path) -> None:
    model = normalize(block()).model
    (_, one, *_), (_, other, *_) = (reconstructed(model, "brecq-w4a4", tmp_path) for _ in range(2))
    for name in ("q0", "k0", "v0", "p", "h0", "f"):
        weight = np.zeros((WIDTH, WIDTH), np.float32)
        np.testing.assert_array_equal(one.rounder(name, weight).codes, other.rounder(name, weight).codes)


def test_a_block_of_other_operators_is_left_to_its_layers(tmp_path: Path) -> None:
    """Selu is none of those that torch is told, and the block before it stays one."""
    model = normalize(block(TEXT.replace("h = Relu (h1)", "h = Selu (h1)"))).model
    _, _, blocks, _ = reconstructed(model, "brecq-w4a4", tmp_path)
    assert [one.name for one in blocks] == ["r"]


def test_a_block_that_torch_computes_otherwise_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operators = reconstruction.SimulatedBlock.exact
    monkeypatch.setattr(SimulatedBlock, "exact", lambda self, inputs: operators(self, inputs) * 1.01)
    model = normalize(block()).model
    assert reconstructed(model, "brecq-w4a4", tmp_path)[2] == []


def test_layers_that_share_a_weight_are_left(tmp_path: Path) -> None:
    text = TEXT.replace("p = MatMul (m, wp)", "p = MatMul (m, wv)")
    model = normalize(block(text)).model
    _, _, blocks, _ = reconstructed(model, "brecq-w4a4", tmp_path)
    assert [one.layers for one in blocks] == [("q0", "k0"), ("h0", "f")]


def test_streams_that_are_too_large_are_of_fewer_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "LARGEST_STREAMS", 3 * 2 * TOKENS * WIDTH * 4)
    seen = []
    learn = reconstruction._learn
    monkeypatch.setattr(reconstruction, "_learn", lambda *a: (seen.append(len(a[4].targets)), learn(*a))[1])
    reconstructed(normalize(block()).model, "brecq-w4a4", tmp_path)
    assert seen == [4, 4]


@pytest.mark.parametrize(("iterations", "expected"), [(120, 2), (0, 0)])
def test_the_report_says_how_rounding_was_learned(iterations: int, expected: int) -> None:
    learning = replace(LEARNING, iterations=iterations)
    _, report = quantize(block_proto(), samples(16), "brecq-w4a4", QuantizeOptions(ONE, rounds=0, learning=learning))
    (line,) = [note for note in report.notes if note.startswith("rounding was learned")]
    assert len(report.blocks) == expected
    assert ("BRECQ" in line) == (expected > 0)
    assert ("of 1 linear layer by itself (GPTQ)" if expected else "of 7 linear layers each by itself (GPTQ)") in line
    _, plain = quantize(block_proto(), samples(16), "rtn-w4a4", QuantizeOptions(ONE, rounds=0, learning=learning))
    assert plain.blocks == ()
    assert not any("rounding" in note for note in plain.notes)


def test_one_sample_is_enough(tmp_path: Path) -> None:
    _, _, blocks, _ = reconstructed(normalize(block()).model, "brecq-w4a4", tmp_path, 1)
    assert len(blocks) == 2


def test_nothing_but_zeros(tmp_path: Path) -> None:
    _, report = quantize(
        block_proto(),
        {"x": np.zeros((4, TOKENS, WIDTH), np.float32)},
        "brecq-w4a4",
        QuantizeOptions(ONE, rounds=0, learning=SHORT),
    )
    assert len(report.blocks) == 2
    assert all(np.isfinite(list(one.errors.values())).all() for one in report.blocks)
