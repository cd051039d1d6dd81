"""No caches of keys and values from the last stage, after which nothing reads them.

    Attention, CodesAttention, IntegerAttention   become   the same with the input `last`

A Loop would copy them once more to hand them out. What continues keys, values and their scales then has no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.graph_passes._fused_nodes import fused_nodes
from nextscale.graph_passes._graph_edit import constant, splice

# Where the operators have the caches among their outputs, and `last` among their inputs.
_CACHES = {"Attention": (3, 4), "CodesAttention": (3, 4, 5, 6), "IntegerAttention": (1, 2)}
_LAST = {"Attention": 10, "CodesAttention": 12, "IntegerAttention": 7}


def drop_last_caches(
    model: ir.Model, stage_input: str, stages: Sequence[int], size_input: str | None = None
) -> ir.Model:
    """A copy of `model` whose fused attentions give empty caches at the last stage.

    Args:
        stage_input: the graph input (int64 []) that tells the stage.
        stages: how many there are, for each size.
        size_input: the graph input (int64 []) that tells the size; None of one size.
    """
    model = model.clone()
    attentions = [node for node in fused_nodes(model.graph, *_CACHES) if not _reads_caches(node)]
    if not attentions:
        return model
    by_name = {value.name: value for value in model.graph.inputs}
    index = np.array(stages) - 1

    def is_last(op: OpBuilder, stage: ir.Value, *size: ir.Value) -> list[ir.Value]:
        last = op.Gather(constant(op, "indices", index), *size) if size else constant(op, "index", index[0])
        return [op.Equal(stage, last)]

    operands = [by_name[stage_input], *([] if size_input is None else [by_name[size_input]])]
    (last,) = splice(model.graph, "last_stage", operands, is_last, before=attentions[0])
    for node in attentions:
        node.resize_inputs(_LAST[node.op_type] + 1)
        node.replace_input_with(_LAST[node.op_type], last)
    return model


def _reads_caches(attention: ir.Node) -> bool:
    """Whether a node reads its caches at the same stage."""
    return any(attention.outputs[i].uses() for i in _CACHES[attention.op_type])
