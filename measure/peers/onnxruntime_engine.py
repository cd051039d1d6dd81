"""ONNX Runtime as a peer: the exported graphs, or their quantized forms, with its own optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from nextscale.measure.peers.host_loop import Floats
from nextscale.runtime._session import SessionOptions, new_session, session_settings


class OnnxRuntimeEngine:
    """Keys and values stay in ONNX Runtime from one stage to the next.

    Args:
        graphs: the files of condition, step and decoder (`exported_graphs`).
        threads: of one operator; 0 lets ONNX Runtime choose.
    Attributes:
        feeds: what the step is fed next, but for x.
    """

    compiles = False

    def __init__(self, graphs: Sequence[Path], threads: int) -> None:
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self._condition, self._step, self._decoder = (self._session(path, threads) for path in graphs)
        self._past = {node.name: node.shape for node in self._step.get_inputs() if node.name.startswith("past_")}
        self._outputs = [node.name for node in self._step.get_outputs()]

    def _session(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        return new_session(path, session_settings(SessionOptions(threads=threads)))

    def begin(self, embedding: Floats) -> None:
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        blocks, head = self._condition.run(["blocks", "head"], {"embedding": embedding})
        self.feeds = {"blocks": value(blocks), "head": value(head)}
        for name, (_, heads, _, width) in self._past.items():
            empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
            self.feeds[name] = empty([len(embedding), heads, 0, width], "float32")

    def stage(self, x: Floats) -> Floats:
        self.feeds["x"] = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        logits, *present = self._step.run_with_ort_values(self._outputs, self.feeds)
        self.feeds |= dict(zip(self._past, present, strict=True))
        array: Floats = logits.numpy()
        return array

    def decode(self, f_hat: Floats) -> Floats:
        pictures: Floats = self._decoder.run(["pictures"], {"f_hat": f_hat})[0]
        return pictures
