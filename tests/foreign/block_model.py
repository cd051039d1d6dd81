"""A small transformer block as a foreign model: opset 17, Gemm, attention over two heads, a classifier."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, parser

TOKENS, WIDTH, HIDDEN, CLASSES = 6, 8, 16, 3
TEXT = """block (float[N, 6, 8] x) => (float[N, 3] y) {
    q0 = MatMul (x, wq)
    k0 = MatMul (x, wk)
    v0 = MatMul (x, wv)
    q1 = Reshape (q0, heads)
    k1 = Reshape (k0, heads)
    v1 = Reshape (v0, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s0 = MatMul (q, k)
    s = Mul (s0, half)
    a = Softmax <axis = -1> (s)
    m0 = MatMul (a, v)
    m1 = Transpose <perm = [0, 2, 1, 3]> (m0)
    m = Reshape (m1, joined)
    p = MatMul (m, wp)
    r = Add (x, p)
    h0 = MatMul (r, w1)
    h1 = Add (h0, b1)
    h = Relu (h1)
    f = MatMul (h, w2)
    t = Add (r, f)
    u = ReduceMean <axes = [1], keepdims = 0> (t)
    y = Gemm <transB = 1> (u, wc, bc)
}"""
LAYERS = ["q0", "k0", "v0", "p", "h0", "f", "y"]
MIX = "m0"


def weights(seed: int = 0) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * shape[0] ** -0.5).astype(np.float32)

    return {
        **{name: normal(WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wp")},
        "w1": normal(WIDTH, HIDDEN),
        "b1": normal(HIDDEN),
        "w2": normal(HIDDEN, WIDTH),
        "wc": normal(CLASSES, WIDTH),
        "bc": normal(CLASSES),
        "half": np.float32(0.5),
        "heads": np.array([0, 0, 2, 4]),
        "joined": np.array([0, 0, WIDTH]),
    }


def block_proto(text: str = TEXT, **further: NDArray[np.generic]) -> onnx.ModelProto:
    """The block, or another graph over some of its weights; nodes are named after what they give."""
    graph = parser.parse_graph(text)
    read = {name for node in graph.node for name in node.input}
    for name, array in (weights() | further).items():
        if name in read:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.output[0]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def block(text: str = TEXT, **further: NDArray[np.generic]) -> ir.Model:
    return ir.from_proto(block_proto(text, **further))


def samples(count: int = 12, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(seed).normal(size=(count, TOKENS, WIDTH)).astype(np.float32)}
