"""Quantize the exported step and decoder with NNCF, OpenVINO's quantizer, in ONNX's form; runs in the provider's
environment.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx

from nextscale.measure.peers.nncf_quantize import Recorder, quantize
from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine


def main(arguments: dict[str, Any]) -> None:
    """Calibrate on generated pictures and write step.onnx and decoder.onnx, and condition.onnx as it was.

    Args:
        arguments: "family"; "condition", "step", "decoder", "host_weights", files; "threads"; "images", how many to
            calibrate on; "out", an existing folder.
    """
    graphs = [Path(arguments[name]) for name in ("condition", "step", "decoder")]
    out = Path(arguments["out"])
    engine = OnnxRuntimeEngine(graphs, arguments["threads"])
    recorder = Recorder(engine, lambda: {name: value.numpy() for name, value in engine.feeds.items()})
    recorder.draw(arguments["family"], Path(arguments["host_weights"]), arguments["images"])
    for name, feeds in (("step", recorder.step_feeds), ("decoder", recorder.decoder_feeds)):
        quantized = quantize(name, onnx.load(arguments[name]), feeds)
        onnx.save(quantized, out / f"{name}.onnx", save_as_external_data=True, location=f"{name}.onnx.data")
    for path in graphs[0].parent.glob("condition.onnx*"):
        shutil.copy(path, out)
