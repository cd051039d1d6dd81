"""A model in ONNX Runtime, with the settings that nextscale runs bundles with."""

from __future__ import annotations

import os
from pathlib import Path

from foreign_tools.feeds import Arrays

from nextscale.runtime._session import SessionOptions, new_session, session_settings

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class OnnxRuntimeEngine:
    """See `worker.Engine`."""

    def __init__(self, model: Path, threads: int) -> None:
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self._session = new_session(model, session_settings(SessionOptions(threads=threads)))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))
