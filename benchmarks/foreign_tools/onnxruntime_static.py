"""ONNX Runtime's `quantize_static`, as its documentation advises for x86 CPUs with VNNI, by its three calibrations.

Of these the one is kept whose outputs on the calibration samples are nearest to the float model's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from foreign_tools.feeds import Arrays, read_feeds
from foreign_tools.onnxruntime_engine import OnnxRuntimeEngine
from foreign_tools.plain_form import plain_form
from foreign_tools.relative_error import relative_error

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

METHODS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Samples whose values are all held at once.
AT_ONCE = 2


class Reader(CalibrationDataReader):
    """The samples, as many at a time as `set_range` says."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self._feeds = feeds
        self.set_range(0, len(feeds))

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._feeds[start_index:end_index])

    def get_next(self) -> dict | None:
        feed = next(self._left, None)
        return None if feed is None else dict(feed)


def main(model: str, calibration: str, out: str, threads: int, operators: list[str], layers_only: bool) -> None:
    """Write model.onnx into a folder, and note.txt on how it was calibrated.

    Args:
        model: the float file.
        calibration: a folder (`write_feeds`).
        out: an existing folder.
        threads: that outputs are computed with.
        operators: types to quantize; [] is all that it can.
        layers_only: of MatMul those with a constant weight, not attention's products.
    """
    feeds = read_feeds(Path(calibration))
    plain, prepared = Path(out) / "plain.onnx", Path(out) / "prepared.onnx"
    onnx.save(plain_form(Path(model)), plain)
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    exact, errors, why = OnnxRuntimeEngine(Path(model), threads), dict[str, float](), dict[str, str]()
    for name, method in METHODS.items():
        made = Path(out) / f"{name}.onnx"
        try:
            quantize_static(
                prepared,
                made,
                Reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=operators,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                extra_options={"MatMulConstBOnly": layers_only, "CalibStridedMinMax": AT_ONCE},
            )
        except Exception as error:  # of its histograms, where ranges are infinite or empty
            why[name] = f"{name}: {error}"
            continue
        run = OnnxRuntimeEngine(made, threads)
        errors[name] = relative_error([exact(feed) for feed in feeds], [run(feed) for feed in feeds])
    if not errors:
        sys.exit("; ".join(why.values()))
    best = min(errors, key=lambda name: errors[name])
    (Path(out) / f"{best}.onnx").replace(Path(out) / "model.onnx")
    for name in (*METHODS, "prepared", "plain"):
        (Path(out) / f"{name}.onnx").unlink(missing_ok=True)
    (Path(out) / "note.txt").write_text(f"calibrated by {best}", encoding="utf-8")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
