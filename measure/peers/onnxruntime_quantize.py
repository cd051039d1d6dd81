"""Quantize the exported graphs with ONNX Runtime's own tools, as its documentation advises for x86 CPUs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from nextscale.measure.peers.host_loop import Floats
from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine
from nextscale.measure.peers.worker import load_host

CALIBRATION_IMAGES = 4


class _Latents(CalibrationDataReader):
    def __init__(self, latents: list[Floats]) -> None:
        self._feeds: Iterator[dict[str, Any]] = ({"f_hat": latent} for latent in latents)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantize_graphs(family: str, exported: Path, folder: Path, threads: int, log: Callable[[str], object]) -> None:
    """Write condition.onnx, step.onnx (dynamic) and decoder.onnx (static) into an existing folder.

    Args:
        family: of the model.
        exported: the folder of the float32 graphs and host.npz.
        folder: where the quantized ones go.
        threads: for calibration.
        log: called with a line of progress.
    """
    logging.getLogger().addFilter(_no_advice)
    for name in ("condition", "step"):
        log(f"onnxruntime: quantize_dynamic on {name}")
        quantize_dynamic(
            exported / f"{name}.onnx",
            folder / f"{name}.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    log(f"onnxruntime: quantize_static on decoder, calibrated on {CALIBRATION_IMAGES} pictures")
    graphs = [exported / f"{name}.onnx" for name in ("condition", "step", "decoder")]
    engine, generate = OnnxRuntimeEngine(graphs, threads), load_host(family, exported / "host.npz")
    latents = [generate(engine, 1, seed).f_hat for seed in range(CALIBRATION_IMAGES)]
    del engine
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        prepared = Path(work) / "decoder.onnx"
        quant_pre_process(graphs[2], prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            folder / "decoder.onnx",
            _Latents(latents),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _no_advice(record: logging.LogRecord) -> bool:
    """Drop the advice to preprocess, which a dynamically quantized transformer does not need."""
    return record.levelno >= logging.ERROR
