"""A model in the form that other tools understand best: weights as initializers, scales by channel."""

from __future__ import annotations

from pathlib import Path

import onnx

# The first whose QuantizeLinear knows scales by channel.
BY_CHANNEL = 13
NEWER = 17
FLOAT = onnx.TensorProto.FLOAT


def plain_form(model: Path) -> onnx.ModelProto:
    """The file's model: its opset is NEWER if it is below BY_CHANNEL; weights in Constant nodes are initializers."""
    loaded = onnx.load(model)
    opsets = {item.domain: item.version for item in loaded.opset_import}
    if opsets[""] < BY_CHANNEL:
        loaded = onnx.version_converter.convert_version(loaded, NEWER)
    others = []
    for node in loaded.graph.node:
        tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        # Of numbers that are no weights NNCF 3.4 fails where they are initializers that a Cast reads.
        if node.op_type == "Constant" and tensors and tensors[0].data_type == FLOAT and tensors[0].dims:
            tensors[0].name = node.output[0]
            loaded.graph.initializer.extend(tensors)
        else:
            others.append(node)
    del loaded.graph.node[:]
    loaded.graph.node.extend(others)
    return loaded
