"""Structure, refusals, idempotence, checker, numbers against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes.halve_table import halve_table

IDS = np.array([[4, 0, 4], [1, 2, 3]])


def table_model(table: NDArray[np.float32], read_otherwise: bool = False) -> ir.Model:
    """rows = table[ids], which are an output and doubled; the table may be an output of the graph, too."""
    builder = new_builder("table")
    op, constants = builder.op, Constants(builder)
    ids = builder.input("ids", ir.DataType.INT64, ["B", "N"])
    stored = constants("table", table)
    rows = op.Gather(stored, ids, axis=0)
    width = table.shape[1]
    add_output(builder, rows, "rows", ir.DataType.FLOAT, ["B", "N", width])
    add_output(builder, op.Mul(rows, 2.0), "doubled", ir.DataType.FLOAT, ["B", "N", width])
    if read_otherwise:
        add_output(builder, op.Neg(stored), "negative", ir.DataType.FLOAT, list(table.shape))
    return finish(builder)


@pytest.fixture
def table() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 10, (5, 8)).astype(np.float32)


def run(model: ir.Model) -> list[NDArray]:
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs: list[NDArray] = session.run(["rows", "doubled"], {"ids": IDS})
    return outputs


def test_rows_are_those_of_the_rounded_table(table: NDArray[np.float32]) -> None:
    model = table_model(table)
    rows, doubled = run(halve_table(model, "table"))
    expected = table.astype(np.float16).astype(np.float32)[IDS]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(doubled, 2 * expected)
    np.testing.assert_array_equal(run(model)[0], table[IDS])


def test_the_table_takes_half_the_memory(table: NDArray[np.float32]) -> None:
    tensors = halve_table(table_model(table), "table").graph.initializers
    assert "table" not in tensors
    stored = tensors["table.half"].const_value
    assert stored is not None
    assert stored.nbytes == table.nbytes // 2


def test_the_graph_is_valid_before_and_after(table: NDArray[np.float32]) -> None:
    before = table_model(table)
    content = ir.to_proto(before).SerializeToString()
    after = halve_table(before, "table")
    for model in (before, after):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert ir.to_proto(before).SerializeToString() == content


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_a_table_beyond_float16_stays(table: NDArray[np.float32], value: float) -> None:
    table[2, 3] = value
    model = table_model(table)
    assert ir.to_proto(halve_table(model, "table")).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_a_table_that_others_read_is_refused(table: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"'table' is read by Neg_node_\d+, not by Gather"):
        halve_table(table_model(table, read_otherwise=True), "table")


def test_an_unknown_table_and_a_second_time_are_refused(table: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="no float32 initializer is named 'rows'"):
        halve_table(table_model(table), "rows")
    with pytest.raises(ValueError, match="no float32 initializer is named 'table'"):
        halve_table(halve_table(table_model(table), "table"), "table")
