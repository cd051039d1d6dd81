"""Infer the types and shapes of a model's values."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from nextscale.foreign._names import values_of

# Bytes from which on a weight is for onnx an input, of which it sees no numbers. Sizes and axes are smaller.
LARGE = 1000


def infer_shapes(model: ir.Model) -> None:
    """Infer anew what each value is; what the model says counts where nothing can be inferred.

    A wrong shape in the file would else be believed, and a Softmax's axis taken for the last. All values must have
    names of their own. onnx_ir has a pass for this, but that makes tensors of sequences.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(_without_shapes(model)), data_prop=True)
    except onnx.shape_inference.InferenceError:
        # A model that contradicts itself: ONNX Runtime says where, when it loads it.
        return
    inferred = {value.name: value for graph in ir.from_proto(proto).graphs() for value in values_of(graph)}
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            found = inferred.get(value.name)
            if found is not None:
                value.type = found.type or value.type
                value.shape = found.shape if found.shape is not None else value.shape
            if value.type is None:
                value.shape = None


def forget_placeholders(model: ir.Model) -> None:
    """Let sizes that the file calls "?" or -1 be unknown: of two that have one name it would follow that they are one.

    A Reshape from the one to the other would be taken for nothing.
    """
    for graph in model.graphs():
        for value in values_of(graph):
            if value.shape is not None and any(map(_is_placeholder, value.shape)):
                value.shape = ir.Shape([None if _is_placeholder(size) else size for size in value.shape])


def _is_placeholder(size: int | ir.SymbolicDim) -> bool:
    return size < 0 if isinstance(size, int) else size.value in ("", "?", "-1", "None")


def _without_shapes(model: ir.Model) -> ir.Model:
    """A clone without large weights, and without shapes but those of graphs' inputs and outputs."""
    model = model.clone()
    for graph in model.graphs():
        for value in values_of(graph):
            if value.producer() is not None and not value.is_graph_output():
                value.shape = None
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None:
            continue
        if value.const_value.nbytes > LARGE:
            del model.graph.initializers[name]
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape.numpy())
            value.const_value = None
            if not value.is_graph_input():
                model.graph.inputs.append(value)
    return model
