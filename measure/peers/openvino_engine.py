"""OpenVINO as a peer; runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from nextscale.measure.peers.host_loop import Floats

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
        feeds: what the step is fed next, but for x.
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
        self._past = {
            port.any_name: port.partial_shape for port in step_model.inputs if port.any_name.startswith("past_")
        }
        self._present = [port.any_name for port in step_model.outputs if port.any_name.startswith("present")]
        # A request's outputs are its next inputs: two take turns, so that none writes what it reads.
        self._requests = [step_model.create_infer_request() for _ in range(2)]

    def begin(self, embedding: Floats) -> None:
        condition = self._condition({"embedding": embedding})
        self.feeds: dict[str, Any] = {name: condition[name] for name in ("blocks", "head")}
        for name, shape in self._past.items():
            empty = (len(embedding), shape[1].get_length(), 0, shape[3].get_length())
            self.feeds[name] = np.empty(empty, np.float32)

    def stage(self, x: Floats) -> Floats:
        request = self._requests[0]
        self._requests.reverse()
        request.infer(self.feeds | {"x": x}, share_inputs=True)
        present = (request.get_tensor(name) for name in self._present)
        self.feeds |= dict(zip(self._past, present, strict=True))
        logits: Floats = request.get_tensor("logits").data
        return logits

    def decode(self, f_hat: Floats) -> Floats:
        pictures: Floats = self._decoder({"f_hat": f_hat})["pictures"]
        return pictures
