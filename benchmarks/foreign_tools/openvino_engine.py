"""A model in OpenVINO; runs in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import openvino
from foreign_tools.feeds import Arrays


class OpenVinoEngine:
    """See `worker.Engine`; compiled for the sample's shapes, which is what OpenVINO is fastest with.

    A float model is run in float32. What an integer model leaves in float is run in bfloat16 where the CPU has it.
    """

    def __init__(self, model: Path, feed: Arrays, threads: int) -> None:
        self.versions = {"openvino": openvino.get_version().split("-")[0]}
        core = openvino.Core()
        read = core.read_model(model)
        read.reshape({port.any_name: feed[port.any_name].shape for port in read.inputs})
        is_integer = any(node.get_type_name() == "FakeQuantize" for node in read.get_ops())
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "bf16" if is_integer and has_bf16 else "f32",
        }
        self._compiled = core.compile_model(read, "CPU", settings)

    def __call__(self, feed: Arrays) -> Arrays:
        found = self._compiled(dict(feed))
        return {port.any_name: found[port] for port in self._compiled.outputs}
