"""Integer attention of every number of axes and form that a graph may have, against the NumPy oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes._attention_patterns import attention_patterns, refusals
from nextscale.graph_passes.quantize_attention import AttentionWeights, quantize_attention

from .attention_model import MIX, WEIGHTS, Form, Operands, Outcome, assert_like_oracle, session_of
from .attention_model import shift_and_sum as counting

QUERIES, KEYS, WIDTH = 5, 7, 4
LEADING = {2: (), 3: (4,), 4: (2, 3), 5: (2, 2, 3)}
BITS, THETA, PLACES = 6, 0.15, (3,)
# The last query sees nothing.
VISIBLE = np.tril(np.ones((QUERIES, KEYS), bool), 2)
VISIBLE[-1] = False
MASK = np.where(VISIBLE, np.float32(0), np.float32(-np.inf))


@dataclass(frozen=True)
class Graph:
    """What a form is written with: an attention's operands, and constants."""

    op: OpBuilder
    constants: Constants
    q: ir.Value
    k: ir.Value
    v: ir.Value

    def number(self, value: float) -> ir.Value:
        return self.constants(f"number.{value}", np.float32(value))

    def scores(self, q: ir.Value | None = None, k: ir.Value | None = None) -> ir.Value:
        return self.typed(self.op.MatMul(q or self.q, k or self.k, _name="scores"), self.q, KEYS)

    def typed(self, value: ir.Value, like: ir.Value, last: int) -> ir.Value:
        assert like.shape is not None
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([*like.shape[:-1], last])
        return value

    def mixed(self, scores: ir.Value, guarded: bool = False) -> ir.Value:
        weights = self.typed(self.op.Softmax(scores, axis=-1, _name="softmax"), self.q, KEYS)
        if guarded:
            weights = self.op.Where(self.op.IsNaN(weights), self.number(0), weights)
            self.typed(weights, self.q, KEYS)
        return self.op.MatMul(weights, self.v, _name=MIX)


def scaled_operands(g: Graph) -> ir.Value:
    q, k = g.op.Mul(g.q, g.number(0.5)), g.op.Mul(g.k, g.number(1.5))
    q.shape, k.shape = g.q.shape, g.k.shape
    return g.mixed(g.scores(q, k))


def filled(g: Graph) -> ir.Value:
    """masked_fill, with the least number in place of minus infinity."""
    hidden = g.constants("hidden", ~VISIBLE | ~VISIBLE.any(axis=1, keepdims=True) & np.eye(QUERIES, KEYS, dtype=bool))
    return g.mixed(g.op.Where(hidden, g.number(float(np.finfo(np.float32).min)), g.scores()))


def reshaped(g: Graph) -> ir.Value:
    """A mask that is added to scores of one more axis."""
    assert g.q.shape is not None
    apart = g.op.Reshape(g.scores(), g.constants("apart", np.array([1, *g.q.shape[:-1], KEYS], np.int64)))
    apart.shape = ir.Shape([1, *g.q.shape[:-1], KEYS])
    together = g.constants("together", np.array([*g.q.shape[:-1], KEYS], np.int64))
    return g.mixed(g.typed(g.op.Reshape(g.op.Add(apart, g.constants("mask", MASK)), together), g.q, KEYS))


def grouped(g: Graph) -> ir.Value:
    """Keys of the first entry of the first axis, repeated for all."""
    assert g.k.shape is not None
    if len(g.k.shape) == 2:
        return g.mixed(g.scores())
    first = g.op.Slice(g.k, [0], [1], [0])
    k = g.op.Expand(first, g.constants("all", np.array(list(g.k.shape), np.int64)))
    k.shape = g.k.shape
    return g.mixed(g.scores(k=k))


ATTENTIONS: dict[str, Callable[[Graph], ir.Value]] = {
    "bare": lambda g: g.mixed(g.scores()),
    "scaled operands": scaled_operands,
    "scaled scores": lambda g: g.mixed(g.op.Mul(g.scores(), g.number(0.7))),
    "masked": lambda g: g.mixed(g.op.Add(g.scores(), g.constants("mask", MASK))),
    "guarded": lambda g: g.mixed(g.op.Add(g.scores(), g.constants("mask", MASK)), guarded=True),
    "filled": filled,
    "reshaped": reshaped,
    "grouped": grouped,
}
# Where the last query sees nothing, and what its output is.
HIDDEN = {"masked": np.nan, "reshaped": np.nan, "guarded": 0.0}


def attention(form: str, rank: int, leading: Sequence[int | str] | None = None) -> ir.Model:
    builder = new_builder("attention")
    leading = LEADING[rank] if leading is None else leading
    shapes = {"q": (QUERIES, WIDTH), "k": (WIDTH, KEYS), "v": (KEYS, WIDTH)}
    q, k, v = (builder.input(name, ir.DataType.FLOAT, [*leading, *shape]) for name, shape in shapes.items())
    y = ATTENTIONS[form](Graph(builder.op, Constants(builder), q, k, v))
    add_output(builder, y, "y", ir.DataType.FLOAT, [*leading, QUERIES, WIDTH])
    return finish(builder)


def operands_of(rank: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng, leading = np.random.default_rng(seed), LEADING[rank]
    shapes = {"q": (QUERIES, WIDTH), "k": (WIDTH, KEYS), "v": (KEYS, WIDTH)}
    return {name: rng.normal(size=(*leading, *shape)).astype(np.float32) for name, shape in shapes.items()}


def run(model: ir.Model, operands: dict[str, NDArray[np.float32]]) -> Outcome:
    """y, the scores and the weights, whatever they are called."""
    model = model.clone()
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    guards = [node for node in model.graph if node.op_type == "Where" and softmax.outputs[0] in node.inputs]
    scores, weights = softmax.inputs[0], (guards[0] if guards else softmax).outputs[0]
    assert scores is not None
    model.graph.outputs.extend([scores, weights])
    y, scores_found, weights_found, *_ = session_of(model).run(["y", str(scores.name), str(weights.name)], operands)
    return Outcome(y, scores_found, weights_found, 0)


def as_four(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., l, d] as [R, H, l, d]: the first axis, and all others."""
    first = x.shape[0] if x.ndim > 2 else 1
    return x.reshape(first, -1, *x.shape[-2:])


def integer(model: ir.Model, weights: AttentionWeights, form: Form | None, bits: int = BITS) -> ir.Model:
    how = counting(form, THETA, PLACES)
    return quantize_attention(model, weights, bits, 1, None, how and replace(how, count_overflow=False))


@pytest.mark.parametrize("rank", LEADING)
@pytest.mark.parametrize("form", ATTENTIONS)
def test_each_form_is_found(form: str, rank: int) -> None:
    model = attention(form, rank)
    (pattern,) = attention_patterns(model.graph)
    assert (pattern.name, pattern.rank, pattern.is_masked) == (MIX, rank, form in ("filled", *HIDDEN))
    assert refusals(model.graph) == []


@pytest.mark.parametrize("rank", LEADING)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("expanded", [None, "residual"], ids=str)
@pytest.mark.parametrize("form", ATTENTIONS)
def test_each_form_is_what_the_oracle_says(
    form: str, expanded: Form | None, weights: AttentionWeights, rank: int
) -> None:
    operands = operands_of(rank)
    found = run(integer(attention(form, rank), weights, expanded), operands)
    exact = run(attention(form, rank), operands)
    assert found.y.shape == exact.y.shape
    seen = slice(None)
    if form in HIDDEN:
        np.testing.assert_array_equal(found.y[..., -1, :], HIDDEN[form])
        np.testing.assert_array_equal(exact.y[..., -1, :], HIDDEN[form])
        seen = slice(QUERIES - 1)
    assert np.abs(found.y - exact.y)[..., seen, :].mean() < 0.25  # the same attention, of values of 1
    y, scores, a = map(as_four, (found.y, found.scores, found.weights))
    a = np.nan_to_num(a, nan=0.0)
    visible = a > 0 if form in ("filled", *HIDDEN) else None
    inputs = Operands(*map(as_four, operands.values()))
    how = counting(expanded, THETA, PLACES)
    with np.errstate(all="ignore"):  # of the query that sees nothing
        assert_like_oracle(
            replace(found, y=y, scores=scores, weights=a), inputs, weights, BITS, how, 0, None, visible, 1, seen
        )


@pytest.mark.parametrize("rank", LEADING)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("form", ["bare", "masked", "guarded"])
def test_both_forms_of_shift_and_sum_are_the_same(form: str, weights: AttentionWeights, rank: int) -> None:
    operands = operands_of(rank, 1)
    duplicate, residual = (
        run(integer(attention(form, rank), weights, of), operands).y for of in ("duplicate", "residual")
    )
    np.testing.assert_array_equal(duplicate, residual)


@pytest.mark.parametrize("leading", [("N",), ("N", 3), (2, "N"), ("N", 2, 3), (2, "N", 3), (2, 3, "N")], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("form", ["bare", "guarded"])
def test_of_nothing_comes_nothing(form: str, weights: AttentionWeights, leading: tuple[int | str, ...]) -> None:
    """A batch or heads of none, in any number of axes; and then as many as the axis is open for."""
    model = integer(attention(form, len(leading) + 2, leading), weights, None)
    for size in (0, 4):
        sizes = [size if axis == "N" else int(axis) for axis in leading]
        shapes = {"q": (QUERIES, WIDTH), "k": (WIDTH, KEYS), "v": (KEYS, WIDTH)}
        (y,) = session_of(model).run(
            ["y"], {name: np.ones((*sizes, *shape), np.float32) for name, shape in shapes.items()}
        )
        assert y.shape == (*sizes, QUERIES, WIDTH)


REFUSED: dict[str, tuple[list[Any], list[Any], list[Any], str]] = {
    "another number of axes": ([2, 5, 4], [4, 7], [2, 7, 4], "the operands of scores have 3 and 2 axes"),
    "one key for all heads": (
        [2, 3, 5, 4],
        [2, 1, 4, 7],
        [2, 3, 7, 4],
        "scores repeats an operand: [2, 3, 5, 4] times",
    ),
    "values for all": ([3, 5, 4], [3, 4, 7], [1, 7, 4], "mix repeats an operand"),
    "one query": ([4], [4, 7], [7, 4], "the operands of scores have 1 and 2 axes"),
}


@pytest.mark.parametrize(("q", "k", "v", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_wrong_is_refused(q: list[Any], k: list[Any], v: list[Any], reason: str) -> None:
    builder = new_builder("attention")
    shapes = {"q": q, "k": k, "v": v}
    inputs = [builder.input(name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()]
    op = builder.op
    weights = op.Softmax(op.MatMul(inputs[0], inputs[1], _name="scores"), axis=-1, _name="softmax")
    weights.shape = ir.Shape([*q[:-1], 7])
    add_output(builder, op.MatMul(weights, inputs[2], _name=MIX), "y", ir.DataType.FLOAT, [*q[:-1], 4])
    model = finish(builder)
    (refusal,) = refusals(model.graph)
    assert str(refusal).startswith(f"softmax: {reason}")
    with pytest.raises(ValueError, match="no MatMul - Softmax - MatMul"):
        quantize_attention(model, "log2", 8)


def test_an_operand_of_unknown_rank_is_refused() -> None:
    model = attention("bare", 3)
    model.graph.inputs[1].shape = None
    assert [str(found) for found in refusals(model.graph)] == ["softmax: an operand of scores is of unknown rank"]
