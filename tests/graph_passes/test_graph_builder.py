"""The builder of all graphs makes the nodes that onnxscript's own makes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnxscript
import pytest
from onnxscript import OpBuilder

from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.graph_passes._graph_edit import MICROSOFT

Piece = Callable[[OpBuilder, ir.Value], object]
PIECES: dict[str, Piece] = {
    "attributes out of order": lambda op, x: op.LayerNormalization(x, [1.0] * 4, epsilon=1e-6, axis=-1),
    "several outputs": lambda op, x: op.Split(x, num_outputs=2, axis=1, _outputs=["left", "right"]),
    "any number of inputs": lambda op, x: op.Concat(x, x, x, axis=-1),
    "numbers as inputs": lambda op, x: op.Add(op.Slice(x, [0], [2], [1]), 2.0),
    "an input left out": lambda op, x: op.Clip(x, None, 1.0),
    "no attributes": lambda op, x: op.MatMul(x, op.Transpose(x)),
    "another domain": lambda op, x: op.QuickGelu(x, alpha=1.0, _domain=MICROSOFT),
}


def built(builder: type[onnxscript.GraphBuilder], piece: Piece) -> str:
    graph = ir.Graph([], [], nodes=[], name="graph", opset_imports={"": 21, MICROSOFT: 1})
    made = builder(graph)
    piece(made.op, made.input("x", ir.DataType.FLOAT, [4, 4]))
    return str(ir.to_proto(graph))


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
def test_nodes_are_those_of_onnxscript(piece: Piece) -> None:
    assert built(GraphBuilder, piece) == built(onnxscript.GraphBuilder, piece)


def test_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Softmax has no attributes \['axes'\]; expected some of \['axis'\]"):
        built(GraphBuilder, lambda op, x: op.Softmax(x, axes=[0]))
