"""What follows a linear layer, done while its sums are in the cache.

    Linear -> Mul gain -> Add residual        becomes   Linear with residual and gain
    Linear -> Gelu (tanh) -> Quantize         becomes   Linear with an activation, whose result is codes

The same for PairLinear.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._fused_nodes import CODE_OUTPUTS, fused_nodes, insert_operator, only_use, take_over
from nextscale.graph_passes._graph_edit import input_of, is_operator

# Inputs up to and with the bias, after which the epilogue's come.
_INPUTS = {"Linear": 6, "PairLinear": 9}


def fuse_epilogues(model: ir.Model) -> ir.Model:
    """A copy of `model` whose linear layers end in what follows them."""
    model = model.clone()
    for linear in fused_nodes(model.graph, *_INPUTS):
        if len(linear.inputs) <= _INPUTS[linear.op_type] and not linear.attributes:
            _take_residual(model.graph, linear) or _take_activation(model.graph, linear)
    RemoveUnusedNodesPass()(model)
    return model


def _own_inputs(linear: ir.Node) -> list[ir.Value | None]:
    inputs = list(linear.inputs)
    return inputs + [None] * (_INPUTS[linear.op_type] - len(inputs))


def _take_residual(graph: ir.Graph, linear: ir.Node) -> bool:
    (y,) = linear.outputs
    scaled = only_use(y)
    if scaled is None or not is_operator(scaled[0], "Mul"):
        return False
    mul, i = scaled
    added = only_use(mul.outputs[0])
    if added is None or not is_operator(added[0], "Add"):
        return False
    add, j = added
    inputs = [*_own_inputs(linear), input_of(add, 1 - j), input_of(mul, 1 - i)]
    made = insert_operator(graph, linear.op_type, inputs, ["y"], f"{linear.name}/residual", {}, before=add)
    take_over(made["y"], add.outputs[0])
    return True


def _take_activation(graph: ir.Graph, linear: ir.Node) -> bool:
    (y,) = linear.outputs
    activated = only_use(y)
    if activated is None or not is_operator(activated[0], "Gelu"):
        return False
    gelu = activated[0]
    coded = only_use(gelu.outputs[0])
    if coded is None or gelu.attributes.get_string("approximate", "none") != "tanh":
        return False
    quantize = coded[0]
    if quantize not in fused_nodes(graph, "Quantize"):
        return False
    attributes = {name: attribute.value for name, attribute in quantize.attributes.items()}
    outputs = CODE_OUTPUTS[str(attributes["ranges"])]
    made = insert_operator(
        graph,
        linear.op_type,
        [*_own_inputs(linear), None, None, *quantize.inputs[1:]],
        ["", *outputs],
        f"{linear.name}/codes",
        {**attributes, "activation": "gelu_tanh"},
        before=quantize,
    )
    for output, old in zip(outputs, quantize.outputs, strict=True):
        if output:
            old.replace_all_uses_with(made[output])
    return True
