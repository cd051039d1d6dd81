"""Blocks in torch beside the integer graph, and what reconstruction makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.foreign import _torch_operators
from nextscale.foreign import reconstruct_blocks as reconstruction
from nextscale.foreign.learning import BlockLearning
from nextscale.foreign.normalize import normalize
from nextscale.foreign.plan import Plan, make_plan
from nextscale.foreign.quantize_model import QuantizeOptions, foreign_recipe, quantize
from nextscale.foreign.reconstruct_blocks import LeftBlock, ReconstructedBlock, reconstruct_blocks
from nextscale.foreign.residual_blocks import residual_blocks
from nextscale.foreign.samples import Samples, graph_inputs, read_samples
from nextscale.foreign.simulated_block import SimulatedBlock
from nextscale.foreign.survey import survey
from nextscale.graph_passes._attention_patterns import attention_patterns
from nextscale.graph_passes.linear_layers import find_layers
from nextscale.graph_passes.recipe import AttentionRecipe, Recipe, load_recipe
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

from .block_model import LAYERS, TEXT, TOKENS, WIDTH, block, block_proto, samples

ONE = SessionOptions(threads=1)
SHORT = BlockLearning(4)
# Of a block of few weights, which all may change.
LEARNING = BlockLearning(200, reach=0.5)
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


def values_of(model: ir.Model, name: str, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float32]]:
    model = model.clone()
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs if value.name == name]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": feed["x"]})[0] for feed in feeds]


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
        of_each = values_of(model, "r", given), values_of(integer, "r", given)
        for feed, exact, expected in zip(given, *of_each, strict=True):
            x = feed["x"]
            np.testing.assert_allclose(simulated.exact([torch.from_numpy(x)]), exact, rtol=1e-4, atol=1e-5)
            off.append(np.abs(simulated.quantized([torch.from_numpy(x)], decoded).numpy() - expected).max())
            lost.append(np.abs(expected - exact).max())
        assert min(lost) > 1e-2, attention
        assert np.median(off) < 1e-5, attention


def reconstructed(
    model: ir.Model, recipe: str, work: Path, count: int = 24, learning: BlockLearning = LEARNING
) -> tuple[Plan, Plan, list[ReconstructedBlock], Samples]:
    chosen, _ = foreign_recipe(recipe)
    plan, given = planned(model, chosen, count, work)
    after, blocks, _ = reconstruct_blocks(model, plan, given, work, ONE, learning, lambda step: None)
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
    before, after, blocks, _ = reconstructed(model, "brecq-w4a4", tmp_path, 48, BlockLearning())
    feeds = [samples(64, seed=9)]
    (exact,) = values_of(model, "r", feeds)
    own, whole = (np.square(values_of(plan.apply(model), "r", feeds)[0] - exact).mean() for plan in (before, after))
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
    plan, given = planned(model, foreign_recipe("brecq-w4a4")[0], 8, tmp_path)
    _, blocks, left = reconstruct_blocks(model, plan, given, tmp_path, ONE, LEARNING, lambda step: None)
    assert [one.name for one in blocks] == ["r"]
    assert left == [LeftBlock("t", "it has operators that torch is not told: Selu")]


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
    monkeypatch.setattr(reconstruction, "_learn", lambda *a: (seen.append(len(a[1].targets)), learn(*a))[1])
    reconstructed(normalize(block()).model, "brecq-w4a4", tmp_path)
    assert seen == [4, 4]


@pytest.mark.parametrize(("iterations", "expected"), [(120, 2), (0, 0)])
def test_the_report_says_how_rounding_was_learned(iterations: int, expected: int) -> None:
    learning = BlockLearning(iterations)
    _, report = quantize(block_proto(), samples(16), "brecq-w4a4", QuantizeOptions(ONE, rounds=0, learning=learning))
    (line,) = [note for note in report.notes if note.startswith("rounding was learned")]
    assert len(report.blocks) == expected
    assert ("BRECQ" in line) == (expected > 0)
    of_each = dict.fromkeys(LAYERS, "layers") | {name: one.kept for one in report.blocks for name in one.layers}
    alone = list(of_each.values()).count("layers")
    assert f"{alone} linear layer{'s' * (alone > 1)} alone (GPTQ)" in line
    assert (f"of {sum(one.kept == 'block' for one in report.blocks)} of 2 residual blocks as a whole" in line) == (
        expected > 0
    )
    _, plain = quantize(block_proto(), samples(16), "rtn-w4a4", QuantizeOptions(ONE, rounds=0, learning=learning))
    assert plain.blocks == ()
    assert not any("rounding" in note for note in plain.notes)


def test_what_lies_before_a_block_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block's piece: in float from its stream on, in integers from what the block before reads."""
    pieces, write = [], reconstruction.write_graph

    def told(model: ir.Model, path: Path) -> Path:
        pieces.append({str(node.name) for node in model.graph if node.name in ("q0", "p", "h0", "f")})
        return write(model, path)

    monkeypatch.setattr(reconstruction, "write_graph", told)
    reconstructed(normalize(block()).model, "brecq-w4a4", tmp_path, 4)
    float_first, *_, float_last, integer_last = pieces
    assert float_first == {"q0", "p"}
    assert float_last == {"h0", "f"}
    assert not integer_last & {"h0", "f"}


def test_one_sample_is_enough(tmp_path: Path) -> None:
    _, _, blocks, _ = reconstructed(normalize(block()).model, "brecq-w4a4", tmp_path, 1)
    assert len(blocks) == 2


def test_nothing_but_zeros(tmp_path: Path) -> None:
    _, report = quantize(
        block_proto(),
        {"x": np.zeros((4, TOKENS, WIDTH), np.float32)},
        "brecq-w4a4",
        QuantizeOptions(ONE, rounds=0, learning=LEARNING),
    )
    assert len(report.blocks) == 2
    assert all(np.isfinite(list(one.errors.values())).all() for one in report.blocks)


# What learning meets that is no smooth function of all weights

GATE = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    g = MatMul (x, wq)
    c = Greater (g, zero)
    v = MatMul (x, wv)
    f = Where (c, v, zero)
    y = Add (x, f)
}"""
THRESHOLD = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    g = MatMul (x, wq)
    c = Greater (g, zero)
    f = Cast <to = 1> (c)
    y = Add (x, f)
}"""
ZERO = {"zero": np.float32(0)}


@pytest.mark.parametrize(("text", "layers"), [(GATE, ("g", "v")), (THRESHOLD, ("g",))])
def test_layers_that_no_slope_reaches(tmp_path: Path, text: str, layers: tuple[str, ...]) -> None:
    _, _, (found,), _ = reconstructed(normalize(block(text, **ZERO)).model, "brecq-w4a4", tmp_path)
    assert found.layers == layers
    assert found.errors[found.kept] == min(found.errors.values())


QUIET = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    k0 = MatMul (x, wk)
    k = Abs (k0)
    s = ReduceSum <keepdims = 1> (k, last)
    n = Div (k, s)
    v = MatMul (n, wv)
    y = Add (x, v)
}"""


def test_a_block_without_numbers_keeps_its_layers_rounding() -> None:
    """Tokens whose codes are all zero make 0 / 0 once they are quantized, in the integer graph as in torch."""
    x = samples(24)["x"]
    x[:, 2] *= 1e-3
    proto = block_proto(QUIET, last=np.array([2]))
    options = [QuantizeOptions(ONE, rounds=0, learning=BlockLearning(count)) for count in (10, 0)]
    (model, report), (plain, _) = (quantize(proto, {"x": x}, "brecq-w4a4", one) for one in options)
    assert [one.kept for one in report.blocks] == ["layers"]
    assert not any(np.isfinite(list(one.errors.values())).any() for one in report.blocks)
    assert model.graph == plain.graph


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((2.0, 3.0, 1.0), "block"),
        ((1.0, 1.0, 1.0), "layers"),
        ((np.nan, 3.0, 4.0), "nearest"),
        ((np.nan, np.nan, np.nan), "layers"),
        ((np.nan, np.inf, 1.0), "block"),
        ((5.0, np.nan, np.nan), "layers"),
    ],
)
def test_what_is_no_number_is_never_best(errors: tuple[float, float, float], best: str) -> None:
    layers, nearest, whole = errors
    assert reconstruction._best({"layers": layers, "nearest": nearest, "block": whole}) == best


def test_slopes_that_are_no_numbers_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose mask hides all, behind a guard: the softmax has no slope there, and all other rows still teach."""
    text = TEXT.replace(
        "s = Mul (s0, half)\n    a = Softmax <axis = -1> (s)",
        "s3 = Mul (s0, half)\n s = Add (s3, mask)\n a0 = Softmax <axis = -1> (s)\n n = IsNaN (a0)\n"
        " a = Where (n, zero, a0)",
    )
    assert "IsNaN" in text
    mask = np.zeros((TOKENS, TOKENS), np.float32)
    mask[1] = -np.inf
    found, coded = [], reconstruction.StraightThroughRounding.coded
    monkeypatch.setattr(
        reconstruction.StraightThroughRounding, "coded", lambda self: (found.append(self.u.detach()), coded(self))[1]
    )
    model = normalize(block(text, mask=mask, **ZERO)).model
    _, _, (first, _), _ = reconstructed(model, "brecq-w4a4", tmp_path)
    assert first.layers == ("q0", "k0", "v0", "p")
    assert all(torch.isfinite(u).all() for u in found)
    assert len(found) == 6


def test_a_mask_from_outside_may_hide_by_minus_infinity(tmp_path: Path) -> None:
    """It is computed of the model's input, of which the block's stream is another value."""
    text = MASKED.replace("(x, w", "(x1, w").replace("Add (x, p)", "Add (x1, p)")
    text = text.replace("Add (s3, mask)", "Add (s3, seen)").replace(
        "    q0 =",
        "    x1 = Mul (x, half)\n    last = ReduceMax <keepdims = 0> (x)\n    none = Mul (last, zero)\n"
        "    seen = Add (mask, none)\n    q0 =",
    )
    _, _, blocks, _ = reconstructed(normalize(block(text, **MASK, **ZERO)).model, "brecq-w4a4", tmp_path)
    assert [one.layers for one in blocks] == [("q0", "k0", "v0", "p"), ("h0", "f")]
    assert all(np.isfinite(list(one.errors.values())).all() for one in blocks)


LOUD = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    n = LayerNormalization (x, gain)
    h0 = MatMul (n, w1)
    h = Relu (h0)
    f = MatMul (h, w2)
    y = Add (x, f)
}"""


@pytest.mark.parametrize(("wrong", "expected"), [(False, 1), (True, 0)])
def test_torch_is_held_to_what_a_block_adds(monkeypatch: pytest.MonkeyPatch, wrong: bool, expected: int) -> None:
    """Beside a channel of 300 what f adds is little, and a wrong f must show all the same."""
    if wrong:
        monkeypatch.setitem(_torch_operators.OPERATORS, "Relu", lambda node, x: 1.01 * x.relu())
    x = samples(16)["x"]
    x[..., 0] += 300
    options = QuantizeOptions(ONE, rounds=0, learning=BlockLearning(2))
    _, report = quantize(block_proto(LOUD, gain=np.ones(WIDTH, np.float32)), {"x": x}, "brecq-w4a4", options)
    assert len(report.blocks) == expected


MEANS = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    n, mean, inverse = LayerNormalization (x, gain)
    a = MatMul (n, wq)
    f = Mul (a, inverse)
    y = Add (x, f)
}"""
WHOLE_MEAN = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    i = Cast <to = 6> (a)
    m = ReduceMean <axes = [2], keepdims = 1> (i)
    c = Cast <to = 1> (m)
    f = Mul (a, c)
    y = Add (x, f)
}"""
POWER = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    p = Pow (a, two)
    f = MatMul (p, wv)
    y = Add (x, f)
}"""
NOTHING_CUT = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    f = Slice (a, none, none)
    y = Add (x, f)
}"""


@pytest.mark.parametrize(
    ("text", "blocks"),
    [(MEANS, 0), (WHOLE_MEAN, 0), (POWER, 1), (NOTHING_CUT, 1)],
    ids=["means", "int", "pow", "cut"],
)
def test_rare_forms_are_computed_or_left(text: str, blocks: int) -> None:
    further = {"gain": np.ones(WIDTH, np.float32), "two": np.array([2.0])}
    options = QuantizeOptions(ONE, rounds=0, learning=BlockLearning(2))
    proto = block_proto(text, none=np.zeros(0, np.int64), **further)
    _, report = quantize(proto, samples(8), "brecq-w4a4", options)
    assert len(report.blocks) == blocks


def test_layers_that_are_left_in_float_are_not_counted() -> None:
    options = QuantizeOptions(ONE, rounds=0, leave=6, learning=BlockLearning(0))
    _, report = quantize(block_proto(), samples(8), "brecq-w4a4", options)
    assert "rounding was learned of 1 linear layer alone (GPTQ)" in report.notes


# What surrounds a block decides how attention and convolutions before it become integer

BEHIND = """h = MatMul (r, wl)
    h1 = Relu (h)
    f = MatMul (h1, wr)
    t = Add (r, f)
"""
CONVOLUTIONS = {
    "a convolution's Relu": "r0 = Conv <pads = [1, 1]> (x, ck) r = Relu (r0)" + BEHIND + "y = Neg (t)",
    "a convolution": "r = Conv <pads = [1, 1]> (x, ck)" + BEHIND + "y = Neg (t)",
    "a result that is read behind the block": "y0 = Conv <pads = [1, 1]> (x, ck) r0 = Relu (y0) r = Tanh (r0)" + BEHIND
    + "y = Add (t, y0)",
    "a move that is one of two readers": "y0 = Conv <pads = [1, 1]> (x, ck) s = Slice (y0, from, to, axis) "
    "c = Conv <pads = [1, 1]> (s, ck2) r = Tanh (c)" + BEHIND + "y = Add (t, y0)",
}  # fmt: skip


@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_a_block_reads_what_the_whole_integer_model_gives(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    further = {
        "ck": (rng.normal(size=(16, 6, 3)) * np.geomspace(0.01, 3, 16)[:, None, None]).astype(np.float32),
        "ck2": rng.normal(size=(16, 16, 3)).astype(np.float32),
        "wl": rng.normal(size=(8, 16)).astype(np.float32),
        "wr": rng.normal(size=(16, 8)).astype(np.float32),
        "from": np.array([0]), "to": np.array([16]), "axis": np.array([1]),
    }  # fmt: skip
    text = f"g (float[N, 6, 8] x) => (float[N, 16, 8] y) {{ {CONVOLUTIONS[form]} }}"
    model = normalize(block(text, **further)).model
    plan, given = planned(model, foreign_recipe("brecq-w4a4")[0], 4, tmp_path)
    assert plan.convolutions
    seen = []

    def kept(
        simulated: SimulatedBlock, streams: reconstruction._Streams, learning: BlockLearning
    ) -> tuple[dict, object]:  # type: ignore[type-arg]
        seen.append(streams)
        return {}, ReconstructedBlock("t", simulated.block.layers, "layers", {})

    monkeypatch.setattr(reconstruction, "_learn", kept)
    reconstruct_blocks(model, plan, given, tmp_path, ONE, LEARNING, lambda step: None)
    of_integer = values_of(plan.apply(model), "r", given)
    for (stream, *_), expected in zip(seen[0].inputs, of_integer, strict=True):
        np.testing.assert_array_equal(stream.numpy(), expected)


def test_what_a_subgraph_reads_is_dropped_with_it() -> None:
    """The If behind the blocks is in no block's piece, and so are the layers that it alone reads."""
    text = TEXT.replace(
        "u = ReduceMean <axes = [1], keepdims = 0> (t)",
        "m5 = ReduceMax <keepdims = 0> (r)\n    cc = Cast <to = 9> (m5)\n    z = If (cc) <\n"
        "        then_branch = tb () => (float[N, 6, 8] zz) { zz = Add (t, r) },\n"
        "        else_branch = eb () => (float[N, 6, 8] zy) { zy = Sub (t, f) }>\n"
        "    u = ReduceMean <axes = [1], keepdims = 0> (z)",
    )
    _, report = quantize(block_proto(text), samples(8), "brecq-w4a4", QuantizeOptions(ONE, rounds=0, learning=SHORT))
    assert len(report.blocks) >= 1


def test_a_recipe_that_is_none_is_refused() -> None:
    recipe = load_recipe("brecq-w4a8")
    wrong = replace(recipe, weights=replace(recipe.weights, bits=8))  # which do not fit into 4 bits
    with pytest.raises(NextscaleError, match="packed"):
        quantize(block_proto(), samples(4), wrong, QuantizeOptions(ONE, rounds=0))
