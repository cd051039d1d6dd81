"""Quantize the exported step and decoder with NNCF, OpenVINO's quantizer, in ONNX's form; runs in the provider's
environment.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import onnx

from nextscale.measure.peers.host_loop import Floats, HostWeights, generate
from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine


class RecordingEngine(OnnxRuntimeEngine):
    """Keeps what each graph is fed."""

    def __init__(self, graphs: Sequence[Path], threads: int) -> None:
        super().__init__(graphs, threads)
        self.step_feeds: list[dict[str, Any]] = []
        self.decoder_feeds: list[dict[str, Any]] = []

    def stage(self, x: Floats) -> Floats:
        self.step_feeds.append({name: value.numpy() for name, value in self._feeds.items()} | {"x": x})
        return super().stage(x)

    def decode(self, f_hat: Floats) -> Floats:
        self.decoder_feeds.append({"f_hat": f_hat})
        return super().decode(f_hat)


def main(arguments: dict[str, Any]) -> None:
    """Calibrate on generated pictures and write step.onnx and decoder.onnx, and condition.onnx as it was.

    Args:
        arguments: "condition", "step", "decoder", "host_weights", files; "threads"; "images", how many to calibrate on;
            "out", an existing folder.
    """
    graphs = [Path(arguments[name]) for name in ("condition", "step", "decoder")]
    out = Path(arguments["out"])
    engine = RecordingEngine(graphs, arguments["threads"])
    weights = HostWeights.load(Path(arguments["host_weights"]))
    for seed in range(arguments["images"]):
        generate(engine, weights, 1, seed)
    settings: dict[str, dict[str, Any]] = {"step": {"model_type": nncf.ModelType.TRANSFORMER}, "decoder": {}}
    for name, feeds in (("step", engine.step_feeds), ("decoder", engine.decoder_feeds)):
        quantized = nncf.quantize(
            onnx.load(arguments[name]),
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            **settings[name],
        )
        onnx.save(quantized, out / f"{name}.onnx", save_as_external_data=True, location=f"{name}.onnx.data")
    for path in graphs[0].parent.glob("condition.onnx*"):
        shutil.copy(path, out)
