"""Sizes that are known are constants, though the batch's is not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from nextscale.foreign.normalize import normalize

HEAD = "g (float[N, 3, 8, 6] x) => (int64[n] y) {"
CONSTANTS = {
    "two": np.array(2), "last": np.array([-1]), "sides": np.array([2, 3]), "batch": np.array(0),
    "mixed": np.array([0, 1]), "none": np.array([], np.int64), "one": np.array([1]), "four": np.array([4]),
    "most": np.array([2**62]), "first": np.array([0]), "step": np.array([2]), "back": np.array([-1]),
    "long": np.array([1]),
}  # fmt: skip
# What is taken of the shape, and whether it is known.
TAKEN = {
    "one size": ("s = Shape (x)\n t = Gather (s, two)\n y = Unsqueeze (t, first)", True),
    "the last": ("s = Shape (x)\n y = Gather (s, last)", True),
    "both sides": ("s = Shape (x)\n y = Gather <axis = 0> (s, sides)", True),
    "the batch": ("s = Shape (x)\n t = Gather (s, batch)\n y = Unsqueeze (t, first)", False),
    "the batch and another": ("s = Shape (x)\n y = Gather (s, mixed)", False),
    "a slice": ("s = Shape (x)\n y = Slice (s, one, four)", True),
    "a slice to the end": ("s = Shape (x)\n y = Slice (s, one, most, first)", True),
    "every other": ("s = Shape (x)\n y = Slice (s, one, four, first, step)", True),
    "backwards": ("s = Shape (x)\n y = Slice (s, most, first, first, back)", False),
    "a slice with the batch": ("s = Shape (x)\n y = Slice (s, first, four)", False),
    "the end of the shape": ("s = Shape <start = -2> (x)\n y = Gather (s, mixed)", True),
    "up to the end": ("s = Shape <start = 1, end = -1> (x)\n y = Gather (s, mixed)", True),
}


def model(body: str) -> onnx.ModelProto:
    graph = parser.parse_graph(f"{HEAD} {body.replace(' y = ', ' z = ')}\n y = Mul (z, long) }}")
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in CONSTANTS.items() if name in read)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("body", "known"), TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_of_a_shape(body: str, known: bool) -> None:
    proto = model(body)
    found = normalize(ir.from_proto(proto))
    assert any("known" in note for note in found.notes) == known
    assert ("Shape" in [node.op_type for node in found.model.graph]) != known
    for batch in (1, 5):
        feed = {"x": np.zeros((batch, 3, 8, 6), np.float32)}
        expected, given = (
            onnxruntime.InferenceSession(of.SerializeToString()).run(None, feed)[0]
            for of in (proto, ir.to_proto(found.model))
        )
        np.testing.assert_array_equal(given, expected)
