"""LayerNormalization, its modulation and the codes of the result in one pass over memory.

LayerNormalization -> Mul gain -> Add shift -> Quantize   becomes   NormQuantize
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._fused_nodes import (
    CODE_OUTPUTS,
    attribute_values,
    fused_nodes,
    insert_operator,
    only_use,
    producer_of,
    take_over_codes,
)
from nextscale.graph_passes._graph_edit import input_of


def fuse_norm(model: ir.Model) -> ir.Model:
    """A copy of `model` whose normalized, modulated and quantized tokens are made by single nodes."""
    model = model.clone()
    for quantize in fused_nodes(model.graph, "Quantize"):
        found = _modulated(input_of(quantize, 0))
        if found is None:
            continue
        norm, gain, shift = found
        made = insert_operator(
            model.graph,
            "NormQuantize",
            [input_of(norm, 0), gain, shift, *quantize.inputs[1:]],
            CODE_OUTPUTS[quantize.attributes["ranges"].as_string()],
            f"{quantize.name}/norm",
            attribute_values(quantize) | {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
            before=quantize,
        )
        take_over_codes(made, quantize)
    RemoveUnusedNodesPass()(model)
    return model


def _modulated(x: ir.Value) -> tuple[ir.Node, ir.Value, ir.Value] | None:
    """The LayerNormalization without weights of its own, the gain and the shift that alone make x."""
    add = producer_of(x, "Add")
    if add is None or only_use(x) is None:
        return None
    for i in (0, 1):
        mul = producer_of(add.inputs[i], "Mul")
        if mul is None or only_use(mul.outputs[0]) is None:
            continue
        for j in (0, 1):
            norm = producer_of(mul.inputs[j], "LayerNormalization")
            if norm is not None and _is_plain(norm) and only_use(norm.outputs[0]) is not None:
                return norm, input_of(mul, 1 - j), input_of(add, 1 - i)
    return None


def _is_plain(norm: ir.Node) -> bool:
    """Over the last axis, with a weight of ones and no bias."""
    weight = ir.convenience.get_const_tensor(input_of(norm, 1))
    bias = norm.inputs[2] if len(norm.inputs) > 2 else None
    is_last = norm.attributes.get_int("axis", -1) == -1
    return is_last and bias is None and weight is not None and bool(np.all(weight.numpy() == 1))
