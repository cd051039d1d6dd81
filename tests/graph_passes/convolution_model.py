"""Models of convolutions, and what their integer forms give, in whole numbers of NumPy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from nextscale.graph_passes.qparams import Range

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
# Nearer to a tie than this, of a code, float32 may round to either.
NEAR_TIE = 1e-4


def model(text: str, **weights: NDArray[np.generic]) -> ir.Model:
    """Of a graph in ONNX's own text form; nodes are named after what they give."""
    graph = parser.parse_graph(text)
    for name, array in weights.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.name or node.output[0]
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.normal(size=shape).astype(np.float32)


def session_of(built: ir.Model, optimized: bool = True, written: Path | None = None) -> onnxruntime.InferenceSession:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    if written is not None:
        options.optimized_model_filepath = str(written)
    return onnxruntime.InferenceSession(
        ir.to_proto(built).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(built: ir.Model, x: Floats, optimized: bool = True) -> list[Floats]:
    found: list[Floats] = session_of(built, optimized).run(None, {"x": x})
    return found


def kernels(built: ir.Model, folder: Path) -> Counter[str]:
    """The operators of ONNX Runtime's optimized graph."""
    session_of(built, True, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def range_of(x: Floats) -> Range:
    """Of all numbers together: [1]."""
    return Range(x.min(keepdims=True).reshape(1), x.max(keepdims=True).reshape(1))


def channel_range(x: Floats) -> Range:
    """Of each channel: [C]."""
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    return Range(x.min(axis=others), x.max(axis=others))


@dataclass(frozen=True)
class Coding:
    """x ~ step (code - zero_point); a step [1], or one for each channel [C]."""

    step: Floats
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float) -> Coding:
        """Eq. 2 and 3 of a range widened to hold zero."""
        low, high = np.float32(min(low, 0)), np.float32(max(high, 0))
        step = np.float32(high - low) / np.float32(255)
        return cls(step.reshape(1), int(np.rint(-low / step)))

    def _columns(self, axes: int) -> Floats:
        return self.step.reshape(1, -1, *[1] * (axes - 2))

    def codes(self, x: Floats) -> Integers:
        found: Integers = np.clip(np.rint(x / self._columns(x.ndim)) + self.zero_point, 0, 255).astype(np.int64)
        return found

    def floats(self, codes: Integers) -> Floats:
        found: Floats = (codes - self.zero_point).astype(np.float32) * self._columns(codes.ndim)
        return found


@dataclass(frozen=True)
class Shape:
    """What a Conv is said to do; `auto_pad` decides where it is no NOTSET."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int = 1
    auto_pad: str = "NOTSET"

    def attributes(self) -> str:
        """In ONNX's text form."""
        pads = f"pads = {[*self.pads]}" if self.auto_pad == "NOTSET" else f'auto_pad = "{self.auto_pad}"'
        return f"<strides = {[*self.strides]}, dilations = {[*self.dilations]}, group = {self.group}, {pads}>"

    def padding(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> list[tuple[int, int]]:
        """Before and behind, of each spatial axis."""
        axes = len(kernel)
        if self.auto_pad == "NOTSET":
            return [(self.pads[i], self.pads[axes + i]) for i in range(axes)]
        found = []
        for n, k, stride, dilation in zip(size, kernel, self.strides, self.dilations, strict=True):
            outputs = -(-n // stride)
            total = max((outputs - 1) * stride + (k - 1) * dilation + 1 - n, 0)
            total = 0 if self.auto_pad == "VALID" else total
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found


def convolve(x: Integers, weight: Integers, shape: Shape) -> Integers:
    """The sums of products, position by position of the kernel: [N, C, ...], [O, C / group, ...] -> [N, O, ...]."""
    kernel, group = weight.shape[2:], shape.group
    x = np.pad(x, [(0, 0), (0, 0), *shape.padding(x.shape[2:], kernel)])
    taken = [(k - 1) * d + 1 for k, d in zip(kernel, shape.dilations, strict=True)]
    sizes = [(n - t) // s + 1 for n, t, s in zip(x.shape[2:], taken, shape.strides, strict=True)]
    total = np.zeros((len(x), len(weight), *sizes), np.int64)
    inputs, outputs = x.shape[1] // group, len(weight) // group
    for place in product(*(range(k) for k in kernel)):
        spatial = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, shape.dilations, sizes, shape.strides, strict=True)
        )
        for g in range(group):
            read = x[(slice(None), slice(g * inputs, (g + 1) * inputs), *spatial)]
            of_group = weight[(slice(g * outputs, (g + 1) * outputs), slice(None), *place)]
            total[:, g * outputs : (g + 1) * outputs] += np.einsum("nc...,oc->no...", read, of_group)
    return total


@dataclass(frozen=True)
class Result:
    """Codes of what a convolution gives, and where another code is as near up to float32's rounding."""

    codes: Integers
    other: Integers


def integer_convolution(
    codes: Integers, weight: Floats, bias: Floats | None, x: Coding, y: Coding, shape: Shape
) -> Result:
    """QLinearConv of weights in whole steps of 1 / 127 of each output's largest, once they have the input's steps."""
    rows, per_group = len(weight), weight.shape[1]
    spread = np.broadcast_to(x.step, shape.group * per_group).reshape(shape.group, per_group)
    spread = np.repeat(spread, rows // shape.group, axis=0).reshape(rows, per_group, *[1] * (weight.ndim - 2))
    stepped = weight * spread
    largest = np.abs(stepped).reshape(rows, -1).max(axis=1)
    step = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    whole = np.rint(stepped / step.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int64)
    total = convolve(codes - x.zero_point, whole, shape)
    columns = (1, -1, *[1] * (weight.ndim - 2))
    if bias is not None:
        total = total + np.rint(bias.astype(np.float64) / step).astype(np.int64).reshape(columns)
    exact = total * (step / y.step).astype(np.float32).astype(np.float64).reshape(columns)
    nearest = np.rint(exact)
    over = exact - nearest
    second = np.where(np.abs(np.abs(over) - 0.5) < NEAR_TIE, nearest + np.sign(over), nearest)
    return Result(*(np.clip(found + y.zero_point, 0, 255).astype(np.int64) for found in (nearest, second)))


def assert_codes(found: Floats, expected: Result, y: Coding) -> None:
    """That floats are what these codes stand for, to the last bit."""
    right = (found == y.floats(expected.codes)) | (found == y.floats(expected.other))
    assert right.all(), f"{(~right).sum()} of {right.size} are other numbers"
