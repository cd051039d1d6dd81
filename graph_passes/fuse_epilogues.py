"""What follows a linear layer, done while its sums are in the cache.

    1  Linear -> Add bias [N]                 becomes   Linear with the bias
    2  Linear -> Mul gain -> Add residual     becomes   Linear with residual and gain
    3  Linear -> Gelu (tanh)                  becomes   Linear with an activation
    4  Linear -> Quantize                     becomes   Linear whose result is codes

The same for PairLinear; 3 and 4 may follow each other.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.graph_passes._fused_nodes import (
    CODE_OUTPUTS,
    Attributes,
    attribute_values,
    fused_nodes,
    insert_operator,
    only_quantize,
    only_use,
    take_over,
    take_over_codes,
)
from nextscale.graph_passes._graph_edit import input_of, is_operator

# Inputs up to and with the bias, after which the epilogue's come.
_INPUTS = {"Linear": 6, "PairLinear": 9}


def fuse_epilogues(model: ir.Model) -> ir.Model:
    """A copy of `model` whose linear layers end in what follows them."""
    model = model.clone()
    for linear in fused_nodes(model.graph, *_INPUTS):
        if not _has_epilogue(linear):
            linear = _with_bias(model.graph, linear)
            if not _take_residual(model.graph, linear):
                _take_activation_and_codes(model.graph, linear)
    RemoveUnusedNodesPass()(model)
    return model


def _has_epilogue(linear: ir.Node) -> bool:
    return len(linear.inputs) > _INPUTS[linear.op_type] or bool(linear.attributes)


def _own_inputs(linear: ir.Node) -> list[ir.Value | None]:
    inputs = list(linear.inputs)
    return inputs + [None] * (_INPUTS[linear.op_type] - len(inputs))


def _with_bias(graph: ir.Graph, linear: ir.Node) -> ir.Node:
    """1: the node itself where it has a bias, or none follows."""
    inputs = _own_inputs(linear)
    use = only_use(linear.outputs[0])
    if inputs[-1] is not None or use is None or not is_operator(use[0], "Add"):
        return linear
    add, i = use
    bias = input_of(add, 1 - i)
    if bias.const_value is None or len(bias.const_value.shape) != 1:
        return linear
    inputs[-1] = bias
    made = insert_operator(graph, linear.op_type, inputs, ["y"], f"{linear.name}/bias", {}, before=add)
    take_over(made["y"], add.outputs[0])
    node = made["y"].producer()
    assert node is not None
    return node


def _take_residual(graph: ir.Graph, linear: ir.Node) -> bool:
    """2: whether it was there."""
    scaled = only_use(linear.outputs[0])
    if scaled is None or not is_operator(scaled[0], "Mul"):
        return False
    mul, i = scaled
    added = only_use(mul.outputs[0])
    if added is None or not is_operator(added[0], "Add"):
        return False
    add, j = added
    gain, residual = input_of(mul, 1 - i), input_of(add, 1 - j)
    if gain.const_value is not None or residual.const_value is not None:
        return False  # shared by all rows, which the operator's are not
    inputs = [*_own_inputs(linear), residual, gain]
    made = insert_operator(graph, linear.op_type, inputs, ["y"], f"{linear.name}/residual", {}, before=add)
    take_over(made["y"], add.outputs[0])
    return True


def _take_activation_and_codes(graph: ir.Graph, linear: ir.Node) -> None:
    """3 and 4, what of them is there."""
    last, attributes = linear, Attributes()
    use = only_use(last.outputs[0])
    if use is not None and is_operator(use[0], "Gelu") and _is_tanh(use[0]):
        last, attributes["activation"] = use[0], "gelu_tanh"
    quantize = only_quantize(last.outputs[0])
    if quantize is not None:
        attributes |= attribute_values(quantize)
        outputs = ["", *CODE_OUTPUTS[str(attributes["ranges"])]]
        inputs = [*_own_inputs(linear), None, None, *quantize.inputs[1:]]
        name = f"{linear.name}/codes"
        made = insert_operator(graph, linear.op_type, inputs, outputs, name, attributes, before=quantize)
        take_over_codes(made, quantize)
    elif last is not linear:
        inputs, name = _own_inputs(linear), f"{linear.name}/activation"
        made = insert_operator(graph, linear.op_type, inputs, ["y"], name, attributes, before=last)
        take_over(made["y"], last.outputs[0])


def _is_tanh(gelu: ir.Node) -> bool:
    return gelu.attributes.get_string("approximate", "none") == "tanh"
