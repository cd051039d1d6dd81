"""A graph in memory as a session, of any size: it is written into a folder, its weights beside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nextscale.foreign.samples import Arrays
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._operators import wanted_library
from nextscale.runtime._session import SessionOptions, first_line, new_session, session_settings


def write_graph(model: ir.Model, path: Path) -> Path:
    """Write the graph, and its weights into PATH.data; the model in memory is as it was."""
    ir.save(model, path, external_data=f"{path.name}.data")
    return path


def giving(model: ir.Model, names: Collection[str], known: Collection[str] = ()) -> ir.Model:
    """A copy that gives those of these values that its nodes make, and has nothing else.

    Args:
        model: of which.
        names: of values.
        known: of others, which become inputs where they are read, so that what makes them is not needed.
    """
    model = model.clone()
    made = [value for node in model.graph for value in node.outputs]
    outputs, cut = ([value for value in made if value.name in of] for of in (names, known))
    for value in (*outputs, *cut):
        value.dtype = value.dtype or ir.DataType.FLOAT
    model.graph.outputs[:] = outputs
    fed = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in cut]
    for value, instead in zip(cut, fed, strict=True):
        value.name = None
        value.replace_all_uses_with(instead)
    _remove_unused(model)
    model.graph.inputs.extend(value for value in fed if value.uses())
    return model


def _remove_unused(model: ir.Model) -> None:
    """What is read in a subgraph alone that goes itself is unused only after that."""
    count = -1
    while count != len(model.graph):
        count = len(model.graph)
        RemoveUnusedNodesPass()(model)


@dataclass(frozen=True)
class Running:
    """A session of a graph.

    Attributes:
        session: of ONNX Runtime.
        outputs: names of what it gives.
    """

    session: onnxruntime.InferenceSession
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, options: SessionOptions) -> Running:
        """Load a file.

        Raises:
            NextscaleError: ONNX Runtime refuses it.
        """
        settings, library = session_settings(options), wanted_library(options.ops, options.ops_library)
        if library is not None:
            settings.register_custom_ops_library(str(library))
        try:
            session = new_session(path, settings)
        except NextscaleError:
            raise
        except Exception as error:  # its exceptions have no common base below Exception
            raise NextscaleError(f"{path.name}: onnxruntime cannot load it: {first_line(error)}") from None
        return cls(session, tuple(output.name for output in session.get_outputs()))

    def run(self, feed: Arrays, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """What the graph gives; outputs that are no tensors are left out.

        Raises:
            NextscaleError: it fails on these inputs.
        """
        names = self.outputs if outputs is None else outputs
        try:
            found = self.session.run(list(names), dict(feed))
        except Exception as error:  # as above
            raise NextscaleError(f"onnxruntime cannot run the model on the samples: {first_line(error)}") from None
        return {name: value for name, value in zip(names, found, strict=True) if isinstance(value, np.ndarray)}
