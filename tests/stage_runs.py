"""Run a stage graph in memory, stage after stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from nextscale.models.var.sources import VARSource
from nextscale.runtime._session import SessionOptions, session_settings

Array = NDArray[Any]


def run_stages(model: ir.Model, source: VARSource, num_stages: int | None = None) -> list[dict[str, Array]]:
    """All outputs of two images, stage after stage, of all stages or the first ones."""
    settings, content = session_settings(SessionOptions(threads=1)), ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    info, rng = source.model_info(), np.random.default_rng(0)
    feeds: dict[str, Array] = {
        "class_labels": np.array([1, 7]),
        "uniforms": rng.random((2, info.num_tokens), np.float32),
        "forced_tokens": np.full((2, info.num_tokens), -1),
        "cfg_scale": np.array(2, np.float32),
        "top_k": np.array(0),
        "top_p": np.array(0, np.float32),
        "smooth_uniforms": np.zeros((2, 0, info.vocab_size), np.float32),
    }
    sizes = {"B": 2, "2B": 4, "T": 0, "M": 0}
    state = [value for value in session.get_inputs() if value.name not in (*feeds, "stage")]
    for value in state:
        feeds[value.name] = np.zeros([sizes.get(size, size) for size in value.shape], np.float32)
    names = [value.name for value in session.get_outputs()]
    stages = []
    for si in range(num_stages or info.num_stages):
        found = dict(zip(names, session.run(names, feeds | {"stage": np.array(si)}), strict=True))
        stages.append(found)
        for value in state:
            feeds[value.name] = found[f"present.{value.name.removeprefix('past_key_values.')}"]
    return stages
