"""One operator of nextscale-ops in a session of ONNX Runtime, on an instruction set of choice."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

DOMAIN = "nextscale"
ISAS = ("portable", "emulated", "avx2", "avx_vnni", "avx512_vnni", "amx")
Array = NDArray[Any]


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Kernels that are made meanwhile use it."""
    before = os.environ.get("NEXTSCALE_OPS_ISA")
    os.environ["NEXTSCALE_OPS_ISA"] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ["NEXTSCALE_OPS_ISA"]
        else:
            os.environ["NEXTSCALE_OPS_ISA"] = before


@cache
def has_instruction_set(library: Path, isa: str) -> bool:
    """Whether this processor has it."""
    of_library = ctypes.CDLL(str(library)).nextscale_ops_isa
    of_library.restype = ctypes.c_char_p
    with instruction_set(isa):
        return of_library() is not None


class Operator:
    """A session of one node.

    Args:
        library: of the operators.
        op_type: of the node.
        inputs: arrays to feed by default, or None for an input that is left out, by name in the operator's order.
        outputs: names in the operator's order; "" leaves one out.
        constants: the inputs that are initializers.
        attributes: of the node.
    """

    def __init__(
        self,
        library: Path,
        op_type: str,
        inputs: Mapping[str, Array | None],
        outputs: Sequence[str],
        constants: Sequence[str] = (),
        isa: str = "",
        threads: int = 1,
        **attributes: Any,
    ) -> None:
        names = ["" if array is None else name for name, array in inputs.items()]
        while names and not names[-1]:
            names.pop()
        results = [f"result.{name}" if name else "" for name in outputs]
        node = helper.make_node(op_type, names, results, domain=DOMAIN, **attributes)
        self.feeds = {name: a for name, a in inputs.items() if a is not None and name not in constants}
        fed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
            for name, a in self.feeds.items()
        ]
        initializers = [numpy_helper.from_array(np.asarray(inputs[name]), name) for name in constants]
        # The types of results are the operator's own.
        untyped = [onnx.ValueInfoProto(name=name) for name in results if name]
        graph = helper.make_graph([node], "operator", fed, untyped, initializer=initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        # More threads than cores would spin on those that others need.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 4
        settings.register_custom_ops_library(str(library))
        with instruction_set(isa):
            self.session = onnxruntime.InferenceSession(
                self.model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )

    def __call__(self, **changed: Array) -> list[Array]:
        """The outputs that were asked for."""
        found: list[Array] = self.session.run(None, {**self.feeds, **changed})
        return found
