"""A small network as a foreign model: a residual, groups, convolutions one behind the other, a layer behind a pool."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

Arrays = dict[str, NDArray[np.generic]]
SIZE, CLASSES = 8, 3
TEXT = """net (float[N, 3, 8, 8] x) => (float[N, 3] y) {
    s0 = Conv <pads = [1, 1, 1, 1]> (x, ws)
    s1 = BatchNormalization (s0, scale, shift, mean, variance)
    s = Relu (s1)
    a0 = Conv <pads = [1, 1, 1, 1], group = 2> (s, wa, ba)
    a = Clip (a0, zero, six)
    b = Conv (a, wb)
    r = Add (s, b)
    d0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, wd, bd)
    d = Relu (d0)
    e = Conv <pads = [1, 1, 1, 1], group = 12> (d, we)
    p0 = ReduceMean <axes = [2, 3], keepdims = 0> (e)
    y0 = MatMul (p0, wy)
    y = Tanh (y0)
}"""
CONVOLUTIONS = ["s0", "a0", "b", "d0", "e"]
RESULTS = ["s", "a", "b", "d", "e"]


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * np.prod(shape[1:]) ** -0.5).astype(np.float32)

    return {
        "ws": normal(8, 3, 3, 3), "scale": np.abs(normal(8)) + np.float32(0.5), "shift": normal(8), "mean": normal(8),
        "variance": np.abs(normal(8)) + np.float32(0.2), "wa": normal(16, 4, 3, 3), "ba": normal(16),
        "wb": normal(8, 16, 1, 1), "wd": normal(12, 8, 3, 3), "bd": normal(12), "we": normal(12, 1, 3, 3),
        "wy": normal(12, CLASSES),        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip


def net_proto(
    text: str = TEXT, renamed: dict[str, str] | None = None, **further: NDArray[np.generic]
) -> onnx.ModelProto:
    """The network, or another graph over some of its weights; nodes are named after what they give.

    Args:
        text: in ONNX's own form.
        renamed: names that this form does not know, by those that it is parsed with; of values, or "node:NAME".
        further: weights.
    """
    graph = parser.parse_graph(text)
    read = {name for node in graph.node for name in node.input}
    for name, array in (weights() | further).items():
        if name in read:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    renamed = renamed or {}
    for node in graph.node:
        node.name = renamed.get(f"node:{node.output[0]}", node.output[0])
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def net(text: str = TEXT, renamed: dict[str, str] | None = None, **further: NDArray[np.generic]) -> ir.Model:
    return ir.from_proto(net_proto(text, renamed, **further))


def pictures(count: int = 8, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)}
