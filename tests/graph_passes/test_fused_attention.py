"""Integer attention as one operator against the same in stock operators, both made by their passes."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes.fuse_integer_attention import fuse_integer_attention, fused_attentions
from nextscale.graph_passes.quantize_attention import (
    AttentionWeights,
    Magnitudes,
    overflow_name,
    quantize_attention,
)

from .attention_model import FORMS, MIX, ROWS, STAGE, WEIGHTS, Form, shift_and_sum

Feeds = dict[str, NDArray[Any]]
STAGE_INPUT = "stage"
HEADS = 2
# (images, tokens, past, size of a head)
SHAPES = [(1, 1, 0, 64), (2, 9, 5, 16), (1, 33, 20, 96), (2, 40, 90, 64), (1, 4, 990, 64)]
MAGNITUDES = Magnitudes(8.0, 0.5, 2.0)
CACHES = ("present_key", "present_value")


@cache
def cosine_attention(size: int) -> ir.Model:
    """Normalized query and key, caches and two products, as the stage graph has them."""
    builder = new_builder("attention")
    op = builder.op
    width = HEADS * size
    fresh = {name: builder.input(name, ir.DataType.FLOAT, ["R", "l", width]) for name in ("query", "key", "value")}
    past_key = builder.input("past_key", ir.DataType.FLOAT, ["R", HEADS, size, "T0"])
    past_value = builder.input("past_value", ir.DataType.FLOAT, ["R", HEADS, "T0", size])
    stage = builder.input(STAGE_INPUT, ir.DataType.INT64, [])
    split = op.Constant(value_ints=[0, 0, HEADS, size])
    query, key, value = (op.Reshape(x, split) for x in fresh.values())
    query, key = (op.LpNormalization(x, axis=-1, p=2) for x in (query, key))
    scale = op.initializer(ir.tensor(np.full((1, HEADS, 1, 1), 8, np.float32)), name="scale")
    query = op.Mul(op.Transpose(query, perm=[0, 2, 1, 3]), scale)
    keys = op.Concat(past_key, op.Transpose(key, perm=[0, 2, 3, 1]), axis=3)
    values = op.Concat(past_value, op.Transpose(value, perm=[0, 2, 1, 3]), axis=2)
    scores = op.MatMul(query, keys, _name="scores")
    weights = op.Softmax(scores, axis=-1, _name="softmax")
    shapes: tuple[tuple[ir.Value, list[int | str]], ...] = (
        (query, ["R", HEADS, "l", size]),
        (scores, ["R", HEADS, "l", "T"]),
        (weights, ["R", HEADS, "l", "T"]),
    )
    for made, shape in shapes:
        made.dtype, made.shape = ir.DataType.FLOAT, ir.Shape(shape)
    mixed = op.Transpose(op.MatMul(weights, values, _name=MIX), perm=[0, 2, 1, 3])
    y = op.Reshape(mixed, op.Constant(value_ints=[0, 0, width]))
    add_output(builder, y, "y", ir.DataType.FLOAT, ["R", "l", width])
    add_output(builder, keys, CACHES[0], ir.DataType.FLOAT, ["R", HEADS, size, "T"])
    add_output(builder, values, CACHES[1], ir.DataType.FLOAT, ["R", HEADS, "T", size])
    add_output(builder, op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    return finish(builder)


def session_of(model: ir.Model, library: Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.register_custom_ops_library(str(library))
    proto = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(proto, settings, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: Feeds) -> Feeds:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def exact_operands(rng: np.random.Generator, images: int, tokens: int, past: int, size: int) -> Feeds:
    """Numbers of which a norm has no rounding: 4 or 16 of a head's channels are one or minus one, the others zero."""

    def units(count: int) -> NDArray[np.float32]:
        places = rng.random((ROWS * images, HEADS, count, size)).argsort(-1)
        ones = places < np.where(rng.random((ROWS * images, HEADS, count, 1)) < 0.5, 4, 16)
        signs = rng.integers(0, 2, places.shape) * 2 - 1
        return (ones * signs).astype(np.float32)

    def values(count: int) -> NDArray[np.float32]:
        return rng.normal(size=(ROWS * images, HEADS, count, size)).astype(np.float32)

    def by_token(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1)

    past_keys = units(past)
    past_keys /= np.sqrt((past_keys**2).sum(-1, keepdims=True))
    return {
        "query": by_token(units(tokens)),
        "key": by_token(units(tokens)),
        "value": by_token(values(tokens)),
        "past_key": past_keys.transpose(0, 1, 3, 2),
        "past_value": values(past),
        STAGE_INPUT: np.array(STAGE),
    }


def both(
    library: Path, feeds: Feeds, weights: AttentionWeights, bits: int, form: Form | None, known: bool
) -> tuple[Feeds, Feeds]:
    """The outputs of the stock graph and of the fused one."""
    stock, fused = sessions(library, feeds["past_value"].shape[3], weights, bits, form, known)
    return run(stock, feeds), run(fused, feeds)


@lru_cache(maxsize=2 * len(SHAPES))
def sessions(
    library: Path, size: int, weights: AttentionWeights, bits: int, form: Form | None, known: bool
) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    """Of both graphs, for all shapes with heads of one size."""
    model = cosine_attention(size)
    magnitudes = {MIX: MAGNITUDES} if known else None
    how = shift_and_sum(form, 0.02)
    stock = quantize_attention(model, weights, bits, ROWS, magnitudes, how, STAGE_INPUT)
    fused = fuse_integer_attention(model, weights, bits, ROWS, magnitudes, how, STAGE_INPUT, [MIX])
    assert fused_attentions(fused) == {MIX}
    return session_of(stock, library), session_of(fused, library)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.exact_products), 7, 6, 4, 3, 2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_integers_are_those_of_the_stock_graph(
    ops_library: Path, weights: AttentionWeights, bits: int, form: Form | None
) -> None:
    rows = off = 0
    for number, shape in enumerate(SHAPES):
        feeds = exact_operands(np.random.default_rng(number), *shape)
        for known in (False, True):
            stock, fused = both(ops_library, feeds, weights, bits, form, known)
            for name in CACHES:
                np.testing.assert_array_equal(fused[name], stock[name])
            if form is not None:
                assert fused[overflow_name(MIX)] == stock[overflow_name(MIX)]
            y, expected = (x["y"].reshape(*x["y"].shape[:2], HEADS, -1) for x in (fused, stock))
            # An image's largest weight, the unit of log2, is a quotient of sums of up to 1,000 numbers.
            wrong = (np.abs(y - expected) > 2.0**-20 * np.abs(expected)).any(-1)
            rows, off = rows + wrong.size, off + int(wrong.sum())
    assert off <= rows // 100, f"{off} of {rows} rows have a weight's code that exponentials' last bits decide"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_any_numbers_are_near_those_of_the_stock_graph(ops_library: Path, weights: AttentionWeights) -> None:
    """A norm's last bit moves the largest number of an image, which lies on a tie, by a code."""
    rng = np.random.default_rng(5)
    feeds = exact_operands(rng, 2, 40, 90, 64)
    for name in ("query", "key"):
        feeds[name] = rng.normal(size=feeds[name].shape).astype(np.float32)
    stock, fused = both(ops_library, feeds, weights, 7, None, known=False)
    for name in CACHES:
        np.testing.assert_allclose(fused[name], stock[name], rtol=0, atol=2.0**-22)
    difference = fused["y"] - stock["y"]
    # Log2's codes stand for weights that differ by a factor of 2.
    allowed = 0.1 if weights.startswith("log2") else 0.01
    assert np.sqrt(np.square(difference).mean()) <= allowed * np.sqrt(np.square(stock["y"]).mean())
