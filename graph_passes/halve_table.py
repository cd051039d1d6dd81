"""A table of which single rows are read, stored in float16.

Gather (float32 table)   becomes   Gather (float16 table) -> Cast
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nextscale.graph_passes._graph_edit import add_initializer, is_operator

SUFFIX = ".half"


def halve_table(model: ir.Model, name: str) -> ir.Model:
    """A copy of `model` with the table rounded to float16; as it is where a value is beyond that.

    Args:
        model: a graph whose nodes read the table by Gather alone.
        name: of the initializer, float32 of any shape.
    Raises:
        ValueError: no such float32 initializer, or something else reads it.
    """
    model = model.clone()
    table = model.graph.initializers.get(name)
    if table is None or table.const_value is None or table.dtype != ir.DataType.FLOAT:
        raise ValueError(f"no float32 initializer is named {name!r}")
    readers = [node for node, _ in table.uses()]
    others = [node for node in readers if not is_operator(node, "Gather")]
    if others or table.is_graph_output():
        raise ValueError(f"{name!r} is read by {others[0].name if others else 'whoever runs the graph'}, not by Gather")
    with np.errstate(over="ignore"):
        halves = table.const_value.numpy().astype(np.float16)
    if not np.isfinite(halves).all():
        return model
    stored = add_initializer(model.graph, name + SUFFIX, halves)
    for node in readers:
        _widen(node, stored)
    del model.graph.initializers[name]
    return model


def _widen(gather: ir.Node, table: ir.Value) -> None:
    """Let a Gather read halves, and what read its result read that in float32."""
    assert gather.graph is not None
    gather.replace_input_with(0, table)
    (rows,) = gather.outputs
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{gather.name}/widen")
    (wide,) = cast.outputs
    wide.name, wide.shape, wide.type = rows.name, rows.shape, ir.TensorType(ir.DataType.FLOAT)
    # A new type: a clone shares the old one with the model that it was made of.
    rows.name, rows.type = f"{rows.name}{SUFFIX}", ir.TensorType(ir.DataType.FLOAT16)
    rows.replace_all_uses_with(wide, replace_graph_outputs=True)
    cast.replace_input_with(0, rows)
    gather.graph.insert_after(gather, cast)
