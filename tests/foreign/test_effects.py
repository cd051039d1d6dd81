"""What an operator costs is what the model loses when really only that operator is integer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.foreign.effects import costs
from nextscale.foreign.normalize import normalize
from nextscale.foreign.own_errors import changed_outputs, own_changes
from nextscale.foreign.plan import Plan, make_plan
from nextscale.foreign.samples import Samples, graph_inputs, read_samples
from nextscale.foreign.survey import survey
from nextscale.graph_passes.recipe import ActivationRecipe, AttentionRecipe, EqualizationRecipe, Recipe
from nextscale.runtime._session import SessionOptions

from .block_model import MIX, block, samples
from .convolution_net import CONVOLUTIONS, RESULTS, TEXT, net, pictures, weights

SESSION = SessionOptions(threads=1)
STATIC = Recipe(
    "static", activations=ActivationRecipe(granularity="tensor"), attention=AttentionRecipe("integer", "tensor")
)
BY_TOKEN = Recipe("by token", activations=ActivationRecipe(granularity="token"))
BY_IMAGE = Recipe("by image", activations=ActivationRecipe(granularity="image"))


def planned(model: ir.Model, given: object, recipe: Recipe, work: Path) -> tuple[ir.Model, Plan, Samples]:
    floats = normalize(model).model
    read = read_samples(given, graph_inputs(floats.graph))  # type: ignore[arg-type]
    plan, _ = make_plan(floats, survey(floats), recipe, read, work, SESSION)
    return floats, plan, read


def run(model: ir.Model, feed: dict[str, NDArray[np.generic]], *also: str) -> dict[str, NDArray[np.float64]]:
    """The outputs, and other values by name."""
    proto = ir.to_proto(model)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(ir.to_proto(ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=None))
                              for name in also if name not in known)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: value.astype(np.float64) for name, value in zip(names, session.run(None, feed), strict=True)}


def only(plan: Plan, name: str, floats: ir.Model) -> ir.Model:
    """The model with one operator integer."""
    attention = plan.integer.attention
    if attention is not None and name in attention.names:
        return plan.apply_attention(floats, [name])
    others = [other for other in plan.can_be_left if other != name]
    alone = plan.without(others)
    return replace(alone, integer=replace(alone.integer, attention=None)).apply(floats)


MODELS = {
    "convolutions": (net, pictures, STATIC, {*CONVOLUTIONS, "y0"}),
    "convolutions, by token": (net, pictures, BY_TOKEN, {*CONVOLUTIONS, "y0"}),
    "a block": (block, samples, STATIC, {"q0", "k0", "v0", "p", "h0", "f", "y", MIX}),
    "a block, by token": (block, samples, BY_TOKEN, {"q0", "k0", "v0", "p", "h0", "f", "y"}),
    "a block, by image": (block, samples, BY_IMAGE, {"q0", "k0", "v0", "p", "h0", "f", "y"}),
}


@pytest.mark.exact_products
@pytest.mark.parametrize("name", MODELS)
def test_the_effect_of_one_is_that_of_a_model_of_it_alone(name: str, tmp_path: Path) -> None:
    make, given, recipe, names = MODELS[name]
    floats, plan, read = planned(make(), given(3), recipe, tmp_path)
    before = ir.to_proto(floats).SerializeToString()
    found = costs(floats, plan, read, tmp_path, SESSION)
    assert ir.to_proto(floats).SerializeToString() == before
    assert set(found) == names == set(changed_outputs(floats, plan))
    for operator, cost in found.items():
        made = only(plan, operator, floats)
        squares = []
        for feed in read:
            exact, other = run(floats, dict(feed))["y"], run(made, dict(feed))["y"]
            squares.append(np.square(other - exact).sum() / np.square(exact).sum())
        expected = np.sqrt(np.mean(squares))
        assert expected > 0
        # What is added is rounded to float32, and so is what the layers' own errors are found with.
        assert cost.effect.relative == pytest.approx(expected, rel=5e-3)
        assert cost.effect.sqnr == pytest.approx(-20 * np.log10(cost.effect.relative))


@pytest.mark.exact_products
def test_the_error_of_a_convolution_is_of_its_result(tmp_path: Path) -> None:
    """Of each its own, with weights so large that they lie in a file: behind its Relu or Clip, over all samples."""
    floats, plan, read = planned(net(), pictures(3), STATIC, tmp_path)
    found = costs(floats, plan, read, tmp_path, SESSION)
    results = dict(zip(CONVOLUTIONS, RESULTS, strict=True))
    assert {name: changed_outputs(floats, plan)[name] for name in CONVOLUTIONS} == results
    for name, value in results.items():
        made = only(plan, name, floats)
        pairs = [[run(of, dict(feed), value)[value] for of in (floats, made)] for feed in read]
        noise = sum(np.square(other - exact).sum() for exact, other in pairs)
        assert found[name].error.relative == pytest.approx(
            np.sqrt(noise / sum(np.square(exact).sum() for exact, _ in pairs)), rel=1e-4
        )


def test_changes_come_sample_by_sample(tmp_path: Path) -> None:
    floats, plan, read = planned(net(), pictures(3), STATIC, tmp_path)
    changes = list(own_changes(floats, plan, read, tmp_path, SESSION))
    assert sorted((change.name, change.sample) for change in changes) == sorted(
        (name, sample) for name in (*CONVOLUTIONS, "y0") for sample in range(3)
    )
    for change in changes:
        exact = run(floats, dict(read.feeds[change.sample]), change.output)[change.output]
        np.testing.assert_allclose(change.exact, exact, rtol=0, atol=1e-5)
        assert change.found.shape == change.exact.shape


TWO_OUTPUTS = TEXT.replace(
    "(float[N, 3] y)", "(float[N, 3] y, float[N, 12] p0, float[N, 3] none, int64[N] best)"
).replace("y = Tanh (y0)", "y = Tanh (y0) none = Mul (y, zero) best = ArgMax <axis = 1, keepdims = 0> (y)")


@pytest.mark.exact_products
def test_outputs_count_alike_and_those_without_numbers_do_not(tmp_path: Path) -> None:
    """The mean of the squares over y and p0; an output of zeros and one of indices are left out."""
    floats, plan, read = planned(net(TWO_OUTPUTS), pictures(2), STATIC, tmp_path)
    found = costs(floats, plan, read, tmp_path, SESSION)
    for operator in ("s0", "y0"):
        made, squares = only(plan, operator, floats), []
        for feed in read:
            exact, other = run(floats, dict(feed)), run(made, dict(feed))
            squares.append([np.square(other[of] - exact[of]).sum() / np.square(exact[of]).sum() for of in ("y", "p0")])
        assert found[operator].effect.relative == pytest.approx(np.sqrt(np.mean(squares)), rel=5e-3)
    # y0 comes behind p0, which it does not change.
    assert found["y0"].effect.relative > 0


def test_an_operator_without_effect(tmp_path: Path) -> None:
    """Its result is multiplied by zero."""
    text = TEXT.replace("r = Add (s, b)", "b0 = Mul (b, zero1)\n r = Add (s, b0)").replace("zero1", "nothing")
    floats, plan, read = planned(net(text, nothing=np.zeros((8, 1, 1), np.float32)), pictures(2), STATIC, tmp_path)
    found = costs(floats, plan, read, tmp_path, SESSION)
    if "b" in found:  # the factor may have gone into the convolution
        assert found["b"].effect.relative == 0
    assert found["a0"].effect.relative == 0
    assert found["a0"].error.relative > 0
    assert found["s0"].effect.relative > 0


def test_nothing_that_is_integer_costs_nothing(tmp_path: Path) -> None:
    recipe = Recipe("static", activations=ActivationRecipe(granularity="tensor"),
                    layers=dict.fromkeys([*CONVOLUTIONS, "y0"], "float"))  # fmt: skip
    floats, plan, read = planned(net(), pictures(2), recipe, tmp_path)
    assert costs(floats, plan, read, tmp_path, SESSION) == {}


def convolved(x: NDArray[np.floating], equation: str, weight: NDArray[np.floating], stride: int) -> NDArray[np.float64]:
    """With kernels of 3 x 3 and one pixel of padding."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    return np.asarray(np.einsum(equation, windows, weight))


def in_steps(x: NDArray[np.floating], step: NDArray[np.floating], least: float = 0.0) -> NDArray[np.float64]:
    """To the nearest of 256 multiples of a step, from about `least` on."""
    zero_point = np.round(-least / step)
    return np.asarray((np.clip(np.round(x / step) + zero_point, 0, 255) - zero_point) * step)


@pytest.mark.exact_products
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_convolutions_own_error_is_in_the_steps_that_it_has_in_the_model(alpha: float, tmp_path: Path) -> None:
    """Of what d0 gives and e alone reads, each channel has its own with alpha 1, and all have one with alpha 0."""
    spread = np.logspace(-2, 0, 12).astype(np.float32)[:, None, None, None]
    wd, bd, we = (np.asarray(weights()[name]) for name in ("wd", "bd", "we"))
    wd, bd, we = wd * spread, bd * spread.ravel(), we / spread
    recipe = Recipe("static", activations=ActivationRecipe(granularity="tensor"),
                    equalization=EqualizationRecipe(alpha))  # fmt: skip
    floats, plan, read = planned(net(wd=wd, bd=bd, we=we), pictures(3), recipe, tmp_path)
    found = costs(floats, plan, read, tmp_path, SESSION)
    runs = [run(floats, dict(feed), "r", "d", "e") for feed in read]
    r, d, e = (np.concatenate([of_one[name] for of_one in runs]) for name in ("r", "d", "e"))

    steps = d.max((0, 2, 3) if alpha else None, keepdims=True) / 255
    kernel = np.abs(wd).max((1, 2, 3), keepdims=True) / 127
    made = convolved(in_steps(r, np.array((r.max() - r.min()) / 255), r.min()), "nchwij,ocij->nohw",
                     np.round(wd / kernel) * kernel, 2)  # fmt: skip
    made = in_steps(made + bd[:, None, None], steps)
    expected = np.sqrt(np.square(made - d).sum() / np.square(d).sum())
    assert found["d0"].error.relative == pytest.approx(expected, rel=0.01)

    kernel = np.abs(we).max((1, 2, 3), keepdims=True) / 127
    made = convolved(in_steps(d, steps), "nchwij,cij->nchw", (np.round(we / kernel) * kernel)[:, 0], 1)
    made = in_steps(made, np.array((e.max() - e.min()) / 255), e.min())
    expected = np.sqrt(np.square(made - e).sum() / np.square(e).sum())
    assert found["e"].error.relative == pytest.approx(expected, rel=0.01)
