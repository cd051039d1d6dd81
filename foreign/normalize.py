"""Bring a user's own ONNX model to the form that the passes of `graph_passes` work on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PassError, common

from nextscale.foreign._names import name_all
from nextscale.foreign._normal_activations import join_hard_swish
from nextscale.foreign._normal_constants import fold_constants, lift_constants, own_tensors
from nextscale.foreign._normal_convolutions import fold_into_convolutions
from nextscale.foreign._normal_float import float32_inside
from nextscale.foreign._normal_gemm import split_gemms
from nextscale.foreign._normal_shapes import forget_placeholders, infer_shapes
from nextscale.foreign._normal_sizes import fold_known_sizes
from nextscale.foreign._normal_transposed import write_transposed
from nextscale.foreign._opset import convert_opset, convert_softmax, opset_of
from nextscale.graph_passes._graph_edit import input_of, is_operator
from nextscale.runtime._errors import NextscaleError


@dataclass(frozen=True)
class Normalized:
    """A model in the form that the passes of `graph_passes` work on.

    Attributes:
        model: opset 21, or the newer one of a model that needs it. All values and nodes of the main graph and its
            subgraphs have a name of their own, and shapes as far as they can be inferred. Constants are initializers
            of the main graph. Inputs and outputs keep their names, order, types and declared shapes; a weight that was
            listed as an input is none.
        notes: a line on each kind of change, in order.
    """

    model: ir.Model
    notes: tuple[str, ...]


def normalize(model: ir.Model) -> Normalized:
    """Normalize a model, which stays as it is; weights that nothing changes stay where they are, in memory or a file.

    The new model computes the same up to rounding; one of float16 or bfloat16 computes in float32.

    Raises:
        NextscaleError: the model's opset is unknown, or a node has no equal in opset 21.
    """
    model = model.clone()
    own_tensors(model)
    declared = [value.shape.copy() if value.shape is not None else None for value in _borders(model)]
    notes = _inline_functions(model)
    _forget_origins(model)
    opset = opset_of(model)
    notes += _count(name_all(model), "value or node got a name", "values and nodes got names")
    notes += _count(_weights_off_inputs(model), "weight is no longer an input", "weights are no longer inputs")
    lift_constants(model)
    forget_placeholders(model)
    infer_shapes(model)
    # Before the opset, whose change asks for constants of an input's type.
    notes += [f"{name} became float32" for name in float32_inside(model)]
    notes += convert_opset(model)
    infer_shapes(model)
    notes += convert_softmax(model, opset)
    notes += _count(_drop_idle(model), "Dropout or Identity went", "Dropout and Identity went")
    notes += _count(fold_known_sizes(model), "size was known", "sizes were known")
    # Behind the opset: the folding of onnxscript writes the newest forms.
    notes += _count(fold_constants(model), "node was constant or did nothing", "nodes were constant or did nothing")
    _drop_idle(model)
    # Behind the folding, which makes weights of what stands behind Transpose.
    notes += _count(split_gemms(model), "Gemm became MatMul and Add", "Gemm became MatMul and Add")
    # Before the next, which takes the norms that then stand behind a Conv.
    notes += _count(write_transposed(model), "ConvTranspose became Conv", "ConvTranspose became Conv")
    notes += _count(
        fold_into_convolutions(model), "node went into a convolution", "nodes went into the convolutions before them"
    )
    notes += _count(join_hard_swish(model), "HardSwish was put together", "HardSwish were put together")
    common.RemoveUnusedNodesPass()(model)
    name_all(model)
    infer_shapes(model)
    for value, shape in zip(_borders(model), declared, strict=True):
        value.shape = shape if shape is not None else value.shape
    return Normalized(model, tuple(notes))


def _forget_origins(model: ir.Model) -> None:
    """Drop what exporters note of each node and value, such as lines of a program and where they were on a machine."""
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for output in node.outputs:
            output.doc_string = None
            output.metadata_props.clear()


def _borders(model: ir.Model) -> list[ir.Value]:
    """The main graph's inputs that are no weights, and its outputs."""
    return [*(value for value in model.graph.inputs if not value.is_initializer()), *model.graph.outputs]


def _count(number: int, one: str, several: str) -> list[str]:
    return [f"{number} {one if number == 1 else several}"] if number else []


def _inline_functions(model: ir.Model) -> list[str]:
    number = len(model.functions)
    try:
        common.InlinePass()(model)
    except (PassError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise NextscaleError(f"the model's own functions cannot be written out: {reason}") from error
    model.functions.clear()
    return _count(number, "function was written out", "functions were written out")


def _weights_off_inputs(model: ir.Model) -> int:
    """Models of IR version 3 list all initializers as inputs; how many there were."""
    before = len(model.graph.inputs)
    common.RemoveInitializersFromInputsPass()(model)
    return before - len(model.graph.inputs)


def _drop_idle(model: ir.Model) -> int:
    """Remove Dropout that is not for training and Identity, unless a graph puts out what they make; how many went.

    Dropout there becomes Identity.
    """
    nodes = [node for node in model.graph.all_nodes() if is_operator(node, "Identity") or _is_idle_dropout(node)]
    kept = 0
    for node in nodes:
        if node.outputs[0].is_graph_output():
            kept += 1
            node.op_type = "Identity"
            node.attributes.clear()
            node.resize_inputs(1)
            node.resize_outputs(1)
        else:
            node.outputs[0].replace_all_uses_with(input_of(node, 0))
            assert node.graph is not None
            node.graph.remove(node, safe=True)
    return len(nodes) - kept


def _is_idle_dropout(node: ir.Node) -> bool:
    """Whether it is a Dropout of opset 12 or later that drops nothing, and whose mask is not asked for."""
    if not is_operator(node, "Dropout"):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and (training.const_value is None or training.const_value.numpy().any()):
        return False
    return not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
