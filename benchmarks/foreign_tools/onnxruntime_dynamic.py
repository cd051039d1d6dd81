"""ONNX Runtime's `quantize_dynamic`: linear layers, a range of each weight's channel."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import onnx
from foreign_tools.plain_form import plain_form

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


def main(model: str, out: str, **_: object) -> None:
    """Write model.onnx into a folder.

    Args:
        model: the float file.
        out: an existing folder.
    """
    plain, prepared, made = (Path(out) / f"{name}.onnx" for name in ("plain", "prepared", "model"))
    onnx.save(plain_form(Path(model)), plain)
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, made, ["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    plain.unlink()
    prepared.unlink()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
