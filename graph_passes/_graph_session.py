"""A session of a graph in memory, whose weights lie in a bundle's folder."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnxruntime

from nextscale.runtime._session import SessionOptions, session_settings


def open_model(model: ir.Model, weights: Path, options: SessionOptions) -> onnxruntime.InferenceSession:
    """Load a graph that was read from a bundle and altered, without writing it.

    Args:
        model: its external weights are files in `weights`; the others travel inside, up to protobuf's 2 GB.
        weights: the bundle's folder.
        options: threads and memory.
    """
    settings = session_settings(options)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
