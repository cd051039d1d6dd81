"""Quantize the exported step and decoder with NNCF, OpenVINO's quantizer; runs in OpenVINO's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from nextscale.measure.peers.nncf_quantize import Feeds, Recorder, quantize
from nextscale.measure.peers.openvino_engine import OpenVinoEngine


def main(arguments: dict[str, Any]) -> None:
    """Calibrate on generated pictures and write step.xml and decoder.xml.

    Args:
        arguments: "family"; "condition", "step", "decoder", "host_weights", files; "threads"; "images", how many to
            calibrate on; "out", an existing folder.
    """
    for name, feeds in recorded(arguments).items():
        quantized = quantize(name, openvino.Core().read_model(arguments[name]), feeds)
        openvino.save_model(quantized, Path(arguments["out"]) / f"{name}.xml", compress_to_fp16=False)


def recorded(arguments: dict[str, Any]) -> dict[str, list[Feeds]]:
    """What the step and the decoder are fed; the engine that drew is gone then, since NNCF compiles the model again."""
    graphs = [Path(arguments[name]) for name in ("condition", "step", "decoder")]
    engine = OpenVinoEngine(graphs, arguments["threads"], "f32")

    def feeds() -> Feeds:
        return {name: np.array(getattr(value, "data", value)) for name, value in engine.feeds.items()}

    recorder = Recorder(engine, feeds)
    recorder.draw(arguments["family"], Path(arguments["host_weights"]), arguments["images"])
    # The largest stage first: NNCF runs the model with the kernels that `openvino_engine` turns off.
    step_feeds = sorted(recorder.step_feeds, key=lambda feeds: -feeds["x"].shape[1])
    return {"step": step_feeds, "decoder": recorder.decoder_feeds}
