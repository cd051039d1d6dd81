"""Which parts of a graph are residual blocks."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from nextscale.foreign.normalize import normalize
from nextscale.foreign.residual_blocks import ResidualBlock, residual_blocks
from nextscale.graph_passes.linear_layers import linear_layers

from .block_model import block

PARALLEL = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    b = MatMul (x, wk)
    both = Add (a, b)
    y = Add (both, x)
}"""
GELU = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    c = Mul (a, a)
    t = Mul (c, half)
    s = Add (a, t)
    f = MatMul (s, wk)
    y = Add (x, f)
}"""
AROUND = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    r = Add (x, a)
    b = MatMul (r, wk)
    y = Add (x, b)
}"""
OTHERS = """g (float[N, 6, 8] x, float[N, 6, 8] memory, float[N, 1, 8] one) => (float[N, 6, 8] y, float[N, 6, 8] z) {
    k = MatMul (memory, wk)
    q = MatMul (x, wq)
    g = Mul (q, k)
    r = Add (x, g)
    d = MatMul (r, wv)
    e = Mul (d, one)
    y = Add (e, r)
    z = Add (memory, q)
}"""
CHANGED_SHAPE = """g (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    a = MatMul (x, wq)
    m = ReduceMean <axes = [1], keepdims = 1> (a)
    y = Add (x, m)
}"""


def blocks_of(text: str) -> list[ResidualBlock]:
    model = normalize(block(text)).model
    return residual_blocks(model.graph, {layer.name for layer in linear_layers(model.graph)})


def names(values: tuple[ir.Value, ...]) -> list[str]:
    return [str(value.name) for value in values]


def test_attention_and_feed_forward_are_a_block_each() -> None:
    model = normalize(block()).model
    found = residual_blocks(model.graph, {layer.name for layer in linear_layers(model.graph)})
    assert [(one.name, names(one.inputs), one.layers) for one in found] == [
        ("r", ["x"], ("q0", "k0", "v0", "p")),
        ("t", ["r"], ("h0", "f")),
    ]
    assert {node.op_type for node in found[0].nodes} >= {"Softmax", "Reshape", "Transpose", "Add"}
    order = {node: place for place, node in enumerate(model.graph)}
    for one in found:
        assert [order[node] for node in one.nodes] == sorted(order[node] for node in one.nodes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PARALLEL, [("y", ["x"], ("a", "b"))]),
        (GELU, [("y", ["x"], ("a", "f"))]),
        (AROUND, [("r", ["x"], ("a",))]),
        (OTHERS, [("r", ["x", "k"], ("q",)), ("y", ["r", "one"], ("d",))]),
        (CHANGED_SHAPE, []),
    ],
    ids=["parallel", "sum without layers inside", "a block inside", "side inputs", "broadcast"],
)
def test_forms(text: str, expected: list[tuple[str, list[str], tuple[str, ...]]]) -> None:
    assert [(one.name, names(one.inputs), one.layers) for one in blocks_of(text)] == expected


UNKNOWN = """g (float[N, 6, 8] x, int64[3] shape) => (float[A, B, C] y) {
    a = MatMul (x, wq)
    b = Reshape (a, shape)
    y = Add (x, b)
}"""


def test_sizes_that_are_not_known_may_be_the_same() -> None:
    assert [(one.name, one.layers) for one in blocks_of(UNKNOWN)] == [("y", ("a",))]


def test_layers_that_are_not_asked_for_are_in_no_block() -> None:
    model = normalize(block()).model
    assert [one.layers for one in residual_blocks(model.graph, {"q0", "f"})] == [("q0",), ("f",)]
    assert [one.layers for one in residual_blocks(model.graph, {"f", "y"})] == [("f",)]
    assert residual_blocks(model.graph, set()) == []


OVERLAPPING = """g (float[N, 6, 8] x) => (float[N, 6, 8] y, float[N, 6, 8] z) {
    a = MatMul (x, wq)
    b = Relu (a)
    y = Add (x, b)
    c = Mul (b, half)
    z = Add (c, x)
}"""
INTEGERS = """g (float[N, 6, 8] x) => (int64[N, 6, 8] y) {
    i = Cast <to = 7> (x)
    a = MatMul (x, wq)
    g = MatMul (a, wk)
    f = Cast <to = 7> (g)
    j = Mul (i, i)
    k = Mul (j, f)
    y = Add (j, k)
}"""
INTEGER_STREAM = """g (int64[N, 6, 8] x) => (int64[N, 6, 8] y) {
    r = Cast <to = 1> (x)
    g = MatMul (r, wq)
    f = Cast <to = 7> (g)
    y = Add (x, f)
}"""


def test_a_layer_is_in_one_block() -> None:
    assert [(one.name, one.layers) for one in blocks_of(OVERLAPPING)] == [("y", ("a",))]


@pytest.mark.parametrize("text", [INTEGERS, INTEGER_STREAM])
def test_sums_of_integers_end_no_block(text: str) -> None:
    assert blocks_of(text) == []
