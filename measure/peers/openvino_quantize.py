"""Quantize the exported step and decoder with NNCF, OpenVINO's quantizer; runs in OpenVINO's environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino

from nextscale.measure.peers.host_loop import Floats, HostWeights, generate
from nextscale.measure.peers.openvino_engine import OpenVinoEngine


class RecordingEngine(OpenVinoEngine):
    """Keeps what each graph is fed."""

    def __init__(self, graphs: Sequence[Path], threads: int) -> None:
        super().__init__(graphs, threads, "f32")
        self.step_feeds: list[dict[str, Any]] = []
        self.decoder_feeds: list[dict[str, Any]] = []

    def stage(self, x: Floats) -> Floats:
        feeds = {name: np.array(getattr(value, "data", value)) for name, value in self._feeds.items()}
        self.step_feeds.append(feeds | {"x": x})
        return super().stage(x)

    def decode(self, f_hat: Floats) -> Floats:
        self.decoder_feeds.append({"f_hat": f_hat})
        return super().decode(f_hat)


def main(arguments: dict[str, Any]) -> None:
    """Calibrate on generated pictures and write step.xml and decoder.xml.

    Args:
        arguments: "condition", "step", "decoder", "host_weights", files; "threads"; "images", how many to calibrate on;
            "out", an existing folder.
    """
    graphs = [Path(arguments[name]) for name in ("condition", "step", "decoder")]
    engine = RecordingEngine(graphs, arguments["threads"])
    weights = HostWeights.load(Path(arguments["host_weights"]))
    for seed in range(arguments["images"]):
        generate(engine, weights, 1, seed)
    settings: dict[str, dict[str, Any]] = {"step": {"model_type": nncf.ModelType.TRANSFORMER}, "decoder": {}}
    # The largest stage first: NNCF runs the model with the kernels that `openvino_engine` turns off.
    step_feeds = sorted(engine.step_feeds, key=lambda feeds: -feeds["x"].shape[1])
    for name, feeds in (("step", step_feeds), ("decoder", engine.decoder_feeds)):
        model = openvino.Core().read_model(arguments[name])
        quantized = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            **settings[name],
        )
        openvino.save_model(quantized, Path(arguments["out"]) / f"{name}.xml", compress_to_fp16=False)
