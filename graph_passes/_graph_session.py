"""A session of a graph in memory, whose weights lie in a bundle's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from nextscale.runtime._session import SessionOptions, new_session, session_settings


def open_model(
    model: ir.Model, weights: Path, options: SessionOptions, linked: Mapping[str, Path] | None = None
) -> onnxruntime.InferenceSession:
    """Load a graph that was read from a bundle and altered, without writing it.

    Args:
        model: its external weights are files in `weights`; the others travel inside, up to protobuf's 2 GB.
        weights: the bundle's folder.
        options: threads and memory.
        linked: files in `weights` that are links out of it: `Bundle.linked_data`.
    """
    settings = session_settings(options)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    return new_session(ir.to_proto(model).SerializeToString(), settings, linked)
