"""The integer model as a file: one, or where protobuf's 2 GB would not do, one and its weights beside it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from nextscale.runtime._outputs import OutputError
from nextscale.runtime._scratch import scratch_folder

# Weights that travel in the file itself.
MOST_INSIDE = 1_900_000_000


def write_model(model: ir.Model, path: Path) -> None:
    """Write PATH, and PATH.data where the weights are too large for one file; nothing half-written is left.

    Raises:
        OutputError: it cannot be written.
    """
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    outside = f"{path.name}.data" if sum(tensor.nbytes for tensor in weights) > MOST_INSIDE else None
    try:
        with scratch_folder(path.parent) as folder:
            ir.save(model, folder / path.name, external_data=outside)
            # The weights first: a graph without them would be half a model.
            for name in (outside, path.name):
                if name is not None:
                    os.replace(folder / name, path.parent / name)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
