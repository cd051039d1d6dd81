"""OpenVINO as a peer; runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from nextscale.measure.peers.host_loop import Floats, Inputs

# OpenVINO 2026.4 computes wrong logits from the fourth stage on when the stages' shapes reach its generated kernels in
# ascending order; without those kernels it is right, and as fast.
_STEP_SETTINGS = {"SNIPPETS_MODE": "DISABLE"}


class OpenVinoEngine:
    """Keys and values stay in OpenVINO from one stage to the next.

    Args:
        graphs: the files of condition, step and decoder (`exported_graphs`), in ONNX's form or OpenVINO's own.
        threads: 0 lets OpenVINO choose.
        precision: of what is not quantized: "f32", "bf16", or "auto" for bf16 where the CPU has it.
    Attributes:
        feeds: what the step is fed next, but for the stage's own inputs.
    """

    compiles = False

    def __init__(self, graphs: Sequence[Path], threads: int, precision: str) -> None:
        self.versions = {"openvino": openvino.get_version()}
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise RuntimeError("this CPU has no bfloat16 instructions, so OpenVINO would compute in float32")
        if precision == "auto":
            precision = "bf16" if has_bf16 else "f32"
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": precision}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        condition, step, decoder = graphs
        self._condition, self._decoder = (core.compile_model(path, "CPU", settings) for path in (condition, decoder))
        step_model = core.compile_model(step, "CPU", settings | _STEP_SETTINGS)
        shapes = {port.any_name: port.partial_shape for port in step_model.inputs}
        self._past = {name: shape for name, shape in shapes.items() if name.startswith("past_")}
        self._inputs = shapes.keys()
        self._present = [port.any_name for port in step_model.outputs if port.any_name.startswith("present")]
        # A request's outputs are its next inputs: two take turns, so that none writes what it reads.
        self._requests = [step_model.create_infer_request() for _ in range(2)]

    def begin(self, inputs: Inputs) -> Inputs:
        found = self._condition(dict(inputs))
        made = {port.any_name: found[port] for port in self._condition.outputs}
        self.feeds: dict[str, Any] = {name: made.pop(name) for name in self._inputs if name in made}
        rows = len(next(iter(inputs.values())))
        for name, shape in self._past.items():
            self.feeds[name] = np.empty((rows, shape[1].get_length(), 0, shape[3].get_length()), np.float32)
        return made

    def stage(self, inputs: Inputs) -> Floats:
        request = self._requests[0]
        self._requests.reverse()
        request.infer(self.feeds | dict(inputs), share_inputs=True)
        present = (request.get_tensor(name) for name in self._present)
        self.feeds |= dict(zip(self._past, present, strict=True))
        logits: Floats = request.get_tensor("logits").data
        return logits

    def decode(self, f_hat: Floats) -> Floats:
        pictures: Floats = self._decoder({"f_hat": f_hat})["pictures"]
        return pictures
