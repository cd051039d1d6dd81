"""ONNX Runtime as a peer: the exported graphs, or their quantized forms, with its own optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from nextscale.measure.peers.host_loop import Floats, Inputs
from nextscale.runtime._session import SessionOptions, new_session, session_settings


class OnnxRuntimeEngine:
    """Keys and values stay in ONNX Runtime from one stage to the next.

    Args:
        graphs: the files of condition, step and decoder (`exported_graphs`).
        threads: of one operator; 0 lets ONNX Runtime choose.
    Attributes:
        feeds: what the step is fed next, but for the stage's own inputs.
    """

    compiles = False

    def __init__(self, graphs: Sequence[Path], threads: int) -> None:
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self._condition, self._step, self._decoder = (self._session(path, threads) for path in graphs)
        shapes = {node.name: node.shape for node in self._step.get_inputs()}
        self._past = {name: shape for name, shape in shapes.items() if name.startswith("past_")}
        self._inputs = shapes.keys()
        self._outputs = [node.name for node in self._step.get_outputs()]

    def _session(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        return new_session(path, session_settings(SessionOptions(threads=threads)))

    def begin(self, inputs: Inputs) -> Inputs:
        names = [node.name for node in self._condition.get_outputs()]
        made = dict(zip(names, self._condition.run(names, dict(inputs)), strict=True))
        self.feeds = {name: _value(made.pop(name)) for name in names if name in self._inputs}
        rows = len(next(iter(inputs.values())))
        for name, (_, heads, _, width) in self._past.items():
            empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
            self.feeds[name] = empty([rows, heads, 0, width], "float32")
        return made

    def stage(self, inputs: Inputs) -> Floats:
        self.feeds |= {name: _value(array) for name, array in inputs.items()}
        logits, *present = self._step.run_with_ort_values(self._outputs, self.feeds)
        self.feeds |= dict(zip(self._past, present, strict=True))
        array: Floats = logits.numpy()
        return array

    def decode(self, f_hat: Floats) -> Floats:
        pictures: Floats = self._decoder.run(["pictures"], {"f_hat": f_hat})[0]
        return pictures


def _value(array: Floats) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
