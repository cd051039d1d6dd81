"""Make constants of the sizes that a graph asks for and that are known, though others of the same shape are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import add_initializer, input_of, is_operator


def fold_known_sizes(model: ir.Model) -> int:
    """Let Gather and Slice of a Shape be constants where all sizes that they take are known; how many there were.

    With a batch of any size, a picture's sides would be asked for at every run otherwise, and what is computed of them.
    """
    names, folded = Names(model), 0
    for node in [node for node in model.graph if node.op_type in ("Gather", "Slice") and node.domain == ""]:
        sizes = _sizes(input_of(node, 0).producer())
        taken = None if sizes is None or node.outputs[0].is_graph_output() else _taken(node, sizes)
        if taken is not None:
            name = names.value(f"{node.outputs[0].name}.known")
            node.outputs[0].replace_all_uses_with(add_initializer(model.graph, name, taken))
            model.graph.remove(node, safe=True)
            folded += 1
    return folded


def _sizes(shape: ir.Node | None) -> Sequence[int | None] | None:
    """What a Shape gives, None for each size that is not known; None where it is no Shape of a known rank."""
    if shape is None or not is_operator(shape, "Shape"):
        return None
    of = input_of(shape, 0).shape
    if of is None:
        return None
    begin, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", len(of))
    return [size if isinstance(size, int) else None for size in of][begin:end]


def _taken(node: ir.Node, sizes: Sequence[int | None]) -> np.ndarray | None:
    """What the node takes of them; None where one is not known, or which it takes."""
    given = [None if value is None else value.const_value for value in node.inputs[1:]]
    if any(value is not None and tensor is None for value, tensor in zip(node.inputs[1:], given, strict=True)):
        return None
    arrays = [None if tensor is None else tensor.numpy() for tensor in given]
    values = np.array(sizes, dtype=object)
    if node.op_type == "Gather":
        (index,) = arrays
        if index is None or index.size == 0 or not (np.abs(index + 0.5) < len(values)).all():
            return None
        found = values[index]
    else:
        starts, ends, axes, steps = [*arrays, None, None][:4]
        if starts is None or ends is None or starts.size != 1 or ends.size != 1:
            return None
        if axes is not None and axes.ravel().tolist() not in ([0], [-1]):
            return None
        step = 1 if steps is None else int(steps.item())
        found = values[int(starts.item()) : int(ends.item()) : step] if step > 0 else np.array([None])
    known = np.asarray(found, dtype=object)
    return None if any(size is None for size in known.ravel()) else known.astype(np.int64)
