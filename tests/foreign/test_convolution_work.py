"""Convolutions of little work stay in float: to round what they read is more."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.foreign import survey as survey_room
from nextscale.foreign.normalize import normalize
from nextscale.foreign.survey import survey
from nextscale.graph_passes.convolutions import convolutions

LEAST = 32
WEIGHTS = {  # and attributes, and multiplications for each number that is read, by hand
    "pointwise to 32": ((32, 4, 1, 1), "", 32),
    "pointwise to 31": ((31, 4, 1, 1), "", 31),
    "3 x 3 to 4": ((4, 4, 3, 3), "", 36),
    "3 x 3 to 8, every other place": ((8, 4, 3, 3), "strides = [2, 2]", 18),
    "depthwise 5 x 5": ((4, 1, 5, 5), "group = 4", 25),
    "depthwise 5 x 5 to twice as many": ((8, 1, 5, 5), "group = 4", 50),
    "two groups": ((16, 2, 3, 3), "group = 2", 72),
}


def model(shape: tuple[int, ...], attributes: str) -> ir.Model:
    text = f"g (float[N, 4, 16, 16] x) => (float[N, c, h, w] y) {{ c = Conv <{attributes}> (x, k)\n y = Tanh (c) }}"
    graph = parser.parse_graph(text.replace(" <>", ""))
    kernel: NDArray[np.float32] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return normalize(ir.from_proto(proto)).model


@pytest.mark.parametrize(("shape", "attributes", "work"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_of_little_work(shape: tuple[int, ...], attributes: str, work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_room, "LEAST_WORK", LEAST)
    normal = model(shape, attributes)
    (layer,) = convolutions(normal.graph)
    assert layer.work == work
    (item,) = survey(normal).found
    reason = f"{work} multiplications for each number that it reads: less work than to round them"
    assert item.refused == (reason if work < LEAST else None)
