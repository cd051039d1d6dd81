"""Let everything in a model that is constant be an initializer of its main graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants as fold

from nextscale.foreign._names import Names, name_all
from nextscale.graph_passes._graph_edit import add_initializer, input_of, is_operator

# Elements up to which a constant may be computed that is larger than what it is computed from.
LARGEST_NEW = 1 << 20
# Bytes up to which weights in a file are brought into memory.
SMALL = 1 << 12
QUANTIZATION = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"


def own_tensors(model: ir.Model) -> None:
    """Let a clone have tensors of its own, over the same data: renaming a value renames its tensor."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own(value.const_value)
    for node in model.graph.all_nodes():
        if is_operator(node, "Constant") and "value" in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", _own(node.attributes["value"].as_tensor()))


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):  # a copy would share the mapped file, which only one can let go
        place = tensor.location, tensor.offset, tensor.length, tensor.dtype
        own = ir.ExternalTensor(*place, shape=tensor.shape, name=tensor.name or "", base_dir=tensor.base_dir)
        # Shape inference reads small ones, such as what Reshape takes, and looks into no file.
        return own if own.nbytes > SMALL else ir.Tensor(own.numpy().copy(), name=tensor.name, dtype=tensor.dtype)
    if not isinstance(tensor, ir.TensorProtoTensor):
        return copy.copy(tensor)
    # Copies of this kind still share the message that their name is written to.
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def lift_constants(model: ir.Model) -> None:
    """Let Constant nodes, and the initializers of subgraphs, be initializers of the main graph.

    What a graph puts out directly stays.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)


def fold_constants(model: ir.Model) -> int:
    """Compute what depends on constants alone, but for random numbers and quantization; how many nodes went.

    Nothing larger than `LARGEST_NEW` is made that is larger than what it is made from. A value that several nodes
    compute alike, such as the transpose of a shared weight, is computed once.
    """
    before = sum(1 for _ in model.graph.all_nodes())
    _share_alike(model)
    _fold(model)
    if _split_constants(model):
        _share_alike(model)
        _fold(model)
    lift_constants(model)
    common.RemoveUnusedNodesPass()(model)
    return before - sum(1 for _ in model.graph.all_nodes())


def _fold(model: ir.Model) -> None:
    with _without_warnings("onnxscript.optimizer._constant_folding"):
        try:
            fold(model, onnx_shape_inference=True, output_size_limit=1 << 62, should_fold=_should_fold)
        except RuntimeError:
            # onnxscript 0.7.2 fails at a SplitToSequence whose split is known at run time; what it did so far counts.
            name_all(model)
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.metadata_props.pop(FOLDED_FROM, None)
        for node in graph:
            for output in node.outputs:
                output.metadata_props.pop(FOLDED_FROM, None)


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """A node that cannot be computed stays a node, which is nothing to warn of."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _should_fold(node: ir.Node) -> bool | None:
    """Whether to compute a node with constant inputs; None if that depends on how large these are."""
    if node.domain != "" or node.op_type in QUANTIZATION or len(node.outputs) != 1:
        return False
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return None if node.op_type != "ConstantOfShape" else False
    taken = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value is not None)
    return int(np.prod(shape.numpy(), dtype=np.float64)) <= max(taken, LARGEST_NEW)


def _share_alike(model: ir.Model) -> None:
    """Let nodes of the same operator, attributes and constant inputs be one, in the main graph."""
    seen: dict[tuple[object, ...], ir.Node] = {}
    for node in model.graph:
        constant = all(value is None or value.is_initializer() for value in node.inputs)
        plain = all(a.type in (ir.AttributeType.INT, ir.AttributeType.INTS) for a in node.attributes.values())
        leaves = any(output.is_graph_output() for output in node.outputs)
        if node.domain != "" or not node.inputs or not constant or not plain or leaves or _is_random(node):
            continue
        attributes = sorted((a.name, str(a.value)) for a in node.attributes.values())
        first = seen.setdefault((node.op_type, *node.inputs, str(attributes), len(node.outputs)), node)
        if first is not node:
            for mine, other in zip(node.outputs, first.outputs, strict=True):
                mine.replace_all_uses_with(other)
            model.graph.remove(node, safe=True)


def _is_random(node: ir.Node) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial", "Dropout")


def _split_constants(model: ir.Model) -> bool:
    """Compute Split of a constant, which onnxscript's folding leaves; whether there was one."""
    names, changed = Names(model), False
    for node in model.graph:
        if not is_operator(node, "Split") or not all(value is None or value.is_initializer() for value in node.inputs):
            continue
        if any(output.is_graph_output() for output in node.outputs):
            continue
        array, axis = _array(input_of(node, 0)), node.attributes.get_int("axis", 0)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            lengths = _array(input_of(node, 1)).tolist()
        else:
            each = -(-array.shape[axis] // len(node.outputs))
            lengths = [each] * (len(node.outputs) - 1)
        parts = np.split(array, np.cumsum(lengths)[: len(node.outputs) - 1], axis)
        for output, part in zip(node.outputs, parts, strict=True):
            name = names.value(f"{output.name}.part")
            output.replace_all_uses_with(add_initializer(model.graph, name, np.ascontiguousarray(part)))
        model.graph.remove(node, safe=True)
        changed = True
    return changed


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
