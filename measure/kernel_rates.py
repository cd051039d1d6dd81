"""How fast this machine multiplies matrices in ONNX Runtime, in float32 and u8 x s8: what a roofline is made of.

One linear layer of VAR-d16's last stage with guidance (512 x 1024 x 4096), four times over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.measure.interleaved import interleave, timed
from nextscale.runtime._session import SessionOptions, new_session, session_settings

ROWS, INNER, COLUMNS, LAYERS = 512, 1024, 4096, 4
WARMUP = 3


@dataclass(frozen=True)
class KernelRates:
    """Operations per second, a multiply-add being two: float32 and u8 x s8."""

    float32: float
    int8: float

    def mean_with(self, other: KernelRates) -> KernelRates:
        return KernelRates((self.float32 + other.float32) / 2, (self.int8 + other.int8) / 2)

    def best_with(self, other: KernelRates) -> KernelRates:
        """The faster of both: what other programs took from one of them is no property of the machine."""
        return KernelRates(max(self.float32, other.float32), max(self.int8, other.int8))


def kernel_rates(options: SessionOptions, repetitions: int = 15) -> KernelRates:
    """Of the fastest of interleaved repetitions: what a shared machine gives others is no property of its kernels."""
    model = _layers()
    observed = Range(np.array([-4], np.float32), np.array([4], np.float32))
    quantized = quantize_linear(model, {f"layer{i}": observed for i in range(LAYERS)}, "stage")
    feeds = {
        "x": np.random.default_rng(1).standard_normal((1, ROWS, INNER), dtype=np.float32),
        "stage": np.array(0, np.int64),
    }
    sessions = [
        new_session(ir.to_proto(graph).SerializeToString(), session_settings(options)) for graph in (model, quantized)
    ]

    def multiply(session: onnxruntime.InferenceSession) -> Callable[[int], float]:
        return timed(lambda done: session.run(None, feeds))

    seconds = interleave(
        {place: multiply(session) for place, session in enumerate(sessions)},
        repetitions=repetitions,
        warmup=WARMUP,
    )
    operations = 2 * ROWS * INNER * COLUMNS * LAYERS
    return KernelRates(*(operations / min(found) for found in seconds.values()))


def _layers() -> ir.Model:
    """x float32 [1, ROWS, INNER] through LAYERS linear layers, each an output."""
    builder = new_builder("rates")
    x = builder.input("x", ir.DataType.FLOAT, ["B", ROWS, INNER])
    builder.input("stage", ir.DataType.INT64, [])
    rng = np.random.default_rng(0)
    for i in range(LAYERS):
        weight = rng.standard_normal((INNER, COLUMNS), dtype=np.float32) * 0.02
        y = builder.op.MatMul(x, builder.initializer(ir.tensor(weight), f"layer{i}.weight"), _name=f"layer{i}")
        add_output(builder, y, f"y{i}", ir.DataType.FLOAT, ["B", ROWS, COLUMNS])
    return finish(builder)
