"""Sizes as a graph computes them against the numbers themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from autoencoder_runs import run
from onnxscript import GraphBuilder

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes._symbolic_sizes import Size, SizeValues, Symbolic, sure_divisor

GRANULE = 4


def sizes_of(height: Size, width: Size) -> list[Size]:
    """What layers make of the sides of a picture that they halve twice."""
    half = height // 2
    return [height, half // 2, 3 * half + 1, 2 * (half - 1) + 3, height * width, height * width // 16, 7]


def built() -> tuple[GraphBuilder, SizeValues, list[Size]]:
    builder = new_builder("sizes")
    source = builder.input("x", ir.DataType.FLOAT, ["B", "H", "W", 3])
    height, width = Symbolic(("H",), GRANULE), Symbolic(("W",), GRANULE)
    return builder, SizeValues(builder.op, source, {"H": 1, "W": 2}, GRANULE), sizes_of(height, width)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (12, 4)])
def test_vectors_are_the_numbers(height: int, width: int) -> None:
    builder, values, symbolic = built()
    vector = values.vector(symbolic)
    assert isinstance(vector, ir.Value)
    add_output(builder, vector, "sizes", ir.DataType.INT64, [len(symbolic)])
    (found,) = run(finish(builder), np.zeros((1, height, width, 3), np.float32))
    assert found.tolist() == sizes_of(height, width)


def test_numbers_stay_numbers_and_values_are_made_once() -> None:
    builder, values, symbolic = built()
    assert values.vector([1, 2]) == [1, 2]
    assert not list(builder.graph)
    assert values.vector(symbolic) is values.vector(symbolic)
    before = len(list(builder.graph))
    values.vector([*symbolic, 1])
    assert len(list(builder.graph)) == before + 1


def test_what_may_be_left_over_is_refused() -> None:
    side = Symbolic(("H",), GRANULE)
    assert sure_divisor(side) == GRANULE
    assert sure_divisor(12) == 12
    for size, by in ((side, 8), (side + 1, 4)):
        with pytest.raises(ValueError, match=f"may be no multiple of {by}"):
            size // by
