"""Intel Neural Compressor's static quantization of linear layers; runs in an environment of its own.

Of with and without SmoothQuant that is kept whose outputs on the calibration samples are nearest to the float model's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from foreign_tools.feeds import Arrays, read_feeds
from foreign_tools.relative_error import relative_error

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import QuantFormat, QuantType, config, quantize

SETTINGS = {"SmoothQuant": {"SmoothQuant": True}, "without SmoothQuant": {}}


class Reader(CalibrationDataReader):
    """The samples, from the first again after `rewind`."""

    def __init__(self, feeds: list[dict]) -> None:
        self._feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self._feeds)

    def get_next(self) -> dict | None:
        return next(self._left, None)


def main(model: str, calibration: str, out: str, threads: int) -> None:
    """Write model.onnx and its weights into a folder, and note.txt on which was kept and what failed.

    Args:
        model: the float file.
        calibration: a folder (`write_feeds`).
        out: an existing folder.
        threads: that outputs are computed with.
    """
    feeds = read_feeds(Path(calibration))
    exact, errors, why = _outputs(Path(model), feeds, threads), dict[str, float](), dict[str, str]()
    for name, options in SETTINGS.items():
        folder = Path(out) / name
        folder.mkdir()
        try:
            _quantize(model, folder / "model.onnx", feeds, options)
        except Exception as error:  # of its passes, on graphs that they were not written for
            why[name] = f"{name} fails: {type(error).__name__}: {error}"
            continue
        errors[name] = relative_error(exact, _outputs(folder / "model.onnx", feeds, threads))
    if not errors:
        sys.exit("; ".join(why.values()))
    best = min(errors, key=lambda name: errors[name])
    for path in (Path(out) / best).iterdir():
        path.replace(Path(out) / path.name)
    (Path(out) / "note.txt").write_text("; ".join([best, *why.values()]), encoding="utf-8")


def _quantize(model: str, made: Path, feeds: list[dict], options: dict) -> None:
    settings = config.StaticQuantConfig(
        Reader(feeds),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        calibration_sampling_size=len(feeds),
        extra_options=options,
    )
    quantize(model, str(made), settings)


def _outputs(model: Path, feeds: list[dict], threads: int) -> list[Arrays]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
