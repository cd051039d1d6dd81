"""How fast this machine multiplies matrices in ONNX Runtime, float32 and u8 x s8: the scale of all other figures.

One linear layer of VAR-d16's last stage with guidance (512 x 1024 x 4096), four times over.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np
import onnx_ir as ir
import onnxruntime
from provenance import provenance, publish

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.runtime.session import SessionOptions, session_settings

ROWS, INNER, COLUMNS, LAYERS = 512, 1024, 4096, 4


def layers_model() -> ir.Model:
    """x float32 [B, ROWS, INNER] through LAYERS linear layers, each an output."""
    builder = new_builder("rates")
    x = builder.input("x", ir.DataType.FLOAT, ["B", ROWS, INNER])
    builder.input("stage", ir.DataType.INT64, [])
    rng = np.random.default_rng(0)
    for i in range(LAYERS):
        weight = rng.standard_normal((INNER, COLUMNS), dtype=np.float32) * 0.02
        y = builder.op.MatMul(x, builder.initializer(ir.tensor(weight), f"layer{i}.weight"), _name=f"layer{i}")
        add_output(builder, y, f"y{i}", ir.DataType.FLOAT, ["B", ROWS, COLUMNS])
    return finish(builder)


def kernel_rates(threads: int, repetitions: int = 15) -> dict[str, float]:
    """GFLOP/s of float32 and int8, medians of interleaved repetitions."""
    model = layers_model()
    observed = Range(np.array([-4], np.float32), np.array([4], np.float32))
    quantized = quantize_linear(model, {f"layer{i}": observed for i in range(LAYERS)}, "stage")
    settings = session_settings(SessionOptions(threads=threads))
    feeds = {
        "x": np.random.default_rng(1).standard_normal((1, ROWS, INNER), dtype=np.float32),
        "stage": np.array(0, np.int64),
    }
    sessions = {
        name: onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), settings)
        for name, graph in (("float32", model), ("int8", quantized))
    }
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for repetition in range(repetitions + 3):
        for name, session in sessions.items():
            begin = time.perf_counter()
            session.run(None, feeds)
            if repetition >= 3:
                seconds[name].append(time.perf_counter() - begin)
    work = 2 * ROWS * INNER * COLUMNS * LAYERS
    return {name: work / statistics.median(found) / 1e9 for name, found in seconds.items()}


@click.command()
@click.option("--threads", type=int, default=2, show_default=True)
def main(threads: int) -> None:
    """Print and keep the rates."""
    rates = kernel_rates(threads)
    rows = [f"| {name} | {rate:.0f} |" for name, rate in rates.items()]
    publish(
        "kernel_rates", ["# Kernel rates", "", *provenance(threads), "", "| kernel | GFLOP/s |", "|---|---|", *rows]
    )


if __name__ == "__main__":
    main()
