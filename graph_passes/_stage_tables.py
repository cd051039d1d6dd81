"""Quantization parameters that change from stage to stage, chosen in the graph by the stage at hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from nextscale.graph_passes._graph_edit import add_initializer
from nextscale.graph_passes.qparams import ActivationQParams


def stage_tables(
    graph: ir.Graph, qparams: Mapping[str, ActivationQParams], stage_input: str | None, prefix: str
) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Scale and zero point at the current stage, [1] each, by the names in `qparams`.

    All of them lie in two tables [S, names], of which one Gather takes a row and one Split hands it out.

    Args:
        graph: the main graph.
        qparams: [S] each.
        stage_input: the graph input (int64 []) that tells the stage.
        prefix: of the tables' names.
    Raises:
        ValueError: no input is named so, or the graph has tables with this prefix.
    """
    if not qparams:
        return {}
    stage = next((value for value in graph.inputs if value.name == stage_input), None)
    if stage is None:
        raise ValueError(f"no input of the graph is named {stage_input!r}")
    if f"{prefix}.scales" in graph.initializers:
        raise ValueError(f"the graph has a table {f'{prefix}.scales'!r} already")
    columns = []
    nodes = []
    for field in ("scale", "zero_point"):
        table = np.stack([getattr(q, field) for q in qparams.values()], axis=1)
        values = add_initializer(graph, f"{prefix}.{field}s", table)
        gather = ir.node("Gather", [values, stage], {"axis": 0}, name=f"{prefix}/stage_{field}s")
        gather.outputs[0].name = f"{prefix}.stage_{field}s"
        count = len(qparams)
        attributes = {"axis": 0, "num_outputs": count}
        split = ir.node("Split", gather.outputs, attributes, num_outputs=count, name=f"{prefix}/stage_{field}s/split")
        for name, output in zip(qparams, split.outputs, strict=True):
            output.name = f"{name}.{field}"
            output.dtype, output.shape = ir.DataType.from_numpy(table.dtype), ir.Shape([1])
        columns.append(split.outputs)
        nodes += [gather, split]
    graph.insert_before(graph[0], nodes)
    return dict(zip(qparams, zip(*columns, strict=True), strict=True))
