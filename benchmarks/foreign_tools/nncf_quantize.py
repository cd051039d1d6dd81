"""NNCF, OpenVINO's quantizer, on the ONNX file or on OpenVINO's form of it; runs in an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nncf
import onnx
import openvino
from foreign_tools.feeds import read_feeds
from foreign_tools.plain_form import plain_form


def main(model: str, calibration: str, out: str, form: str, **_: object) -> None:
    """Write model.onnx, or model.xml and model.bin, into a folder.

    Args:
        model: the float file.
        calibration: a folder (`write_feeds`).
        out: an existing folder.
        form: "onnx" or "openvino".
    """
    feeds = read_feeds(Path(calibration))
    source = plain_form(Path(model)) if form == "onnx" else openvino.Core().read_model(model)
    quantized = nncf.quantize(
        source,
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
    )
    if form == "onnx":
        onnx.save(quantized, Path(out) / "model.onnx")
    else:
        openvino.save_model(quantized, Path(out) / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
