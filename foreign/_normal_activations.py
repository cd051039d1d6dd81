"""Write activations that a model spells out as the one operator that ONNX has for them."""

from __future__ import annotations

import onnx_ir as ir

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import input_of, is_operator, number_of, replace

SHIFT, TOP = 3.0, 6.0


def join_hard_swish(model: ir.Model) -> int:
    """Let x clip(x + 3, 0, 6) / 6 be HardSwish, of fewer passes over the numbers; how many there were."""
    names, found = Names(model), 0
    for last in [node for node in model.graph if node.op_type in ("Div", "Mul") and node.domain == ""]:
        x = _hard_swish(last)
        if x is not None and _is_as_it(x, last.outputs[0]):
            node = ir.node("HardSwish", [x], name=names.node(f"{last.name}.hard_swish"))
            model.graph.insert_before(last, node)
            replace(last.outputs[0], node.outputs[0])
            found += 1
    return found


def _is_as_it(x: ir.Value, y: ir.Value) -> bool:
    """Whether both are float32 of as many axes: constants of more axes than x make y have more."""
    if x.dtype != ir.DataType.FLOAT or x.shape is None or y.shape is None:
        return False
    return len(x.shape) == len(y.shape)


def _hard_swish(last: ir.Node) -> ir.Value | None:
    """What x is, if the node's output is x clip(x + 3, 0, 6) / 6."""
    for i in (0, 1) if last.op_type == "Mul" else (0,):
        divisor = number_of(last.inputs[1 - i])
        if divisor is not None and _is(divisor, TOP if last.op_type == "Div" else 1 / TOP):
            product = input_of(last, i).producer()
            if product is not None and is_operator(product, "Mul"):
                return _swished(product)
    return None


def _swished(product: ir.Node) -> ir.Value | None:
    for i in (0, 1):
        x, clip = input_of(product, i), input_of(product, 1 - i).producer()
        if clip is None or not is_operator(clip, "Clip") or len(clip.inputs) != 3:
            continue
        low, high, shift = number_of(clip.inputs[1]), number_of(clip.inputs[2]), input_of(clip, 0).producer()
        if low != 0 or high is None or not _is(high, TOP) or shift is None or not is_operator(shift, "Add"):
            continue
        for j in (0, 1):
            added = number_of(shift.inputs[1 - j])
            if input_of(shift, j) is x and added is not None and _is(added, SHIFT):
                return x
    return None


def _is(number: float, wanted: float) -> bool:
    """Up to what float32, or four written digits, leave of it."""
    return abs(number - wanted) <= 1e-4 * wanted
