"""Results of ONNX Runtime's u8 x s8 kernels on a CPU without VNNI, for tests/evaluate/test_saturation.py.

Run it on such a CPU, or on an emulated one (Debian's qemu-user):

    qemu-x86_64 -cpu Haswell .venv/bin/python tests/goldens/make_avx2_products.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

OUT = Path(__file__).with_name("avx2_products.npz")
# Rows, reduction, columns, and whether the s8 operand is a constant, which is packed when a session loads.
PRODUCTS = ((5, 71, 24, True), (1, 71, 24, True), (1, 70, 24, False), (6, 70, 19, False))
# Input and output channels; the kernels for multiples of four need no im2col.
CONVOLUTIONS = ((8, 16), (6, 12), (5, 16))
SIZE, ZERO_POINT, STEP = 6, 100, 1500


def codes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Half of them the largest."""
    found = rng.integers(0, 256, shape, dtype=np.uint8)
    found[rng.random(shape) < 0.5] = 255
    return found


def run(node: onnx.NodeProto, inputs: dict[str, NDArray], constants: dict[str, NDArray], output: int) -> NDArray:
    """The operator's result, on one thread."""
    graph = helper.make_graph(
        [node],
        "product",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in inputs.items()
        ],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    result: NDArray = session.run(["y"], inputs)[0]
    return result


def product(a: NDArray[np.uint8], b: NDArray[np.int8], constant: bool) -> NDArray[np.int32]:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    b_in = {"b": b}
    return run(node, {"a": a} | ({} if constant else b_in), b_in if constant else {}, TensorProto.INT32)


def convolution(x: NDArray[np.uint8], w: NDArray[np.int8]) -> NDArray[np.uint8]:
    """In steps of 1500, from 128."""
    out = len(w)
    constants = {
        "x_scale": np.array(1, np.float32),
        "x_zero_point": np.array(ZERO_POINT, np.uint8),
        "w": w,
        "w_scale": np.ones(out, np.float32),
        "w_zero_point": np.zeros(out, np.int8),
        "y_scale": np.array(STEP, np.float32),
        "y_zero_point": np.array(128, np.uint8),
    }
    node = helper.make_node(
        "QLinearConv",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        channels_last=1,
        kernel_shape=w.shape[2:],
        pads=[1, 1, 1, 1],
    )
    return run(node, {"x": x}, constants, TensorProto.UINT8)


def main() -> None:
    rng, arrays, saturating = np.random.default_rng(0), dict[str, NDArray](), True
    for i, (m, k, n, constant) in enumerate(PRODUCTS):
        a, b = codes(rng, (m, k)), rng.integers(-127, 128, (k, n)).astype(np.int8)
        y = product(a, b, constant)
        saturating &= bool((y != a.astype(np.int32) @ b.astype(np.int32)).any())
        arrays |= {f"product.{i}.a": a, f"product.{i}.b": b, f"product.{i}.y": y}
    for i, (channels, out) in enumerate(CONVOLUTIONS):
        x, w = codes(rng, (1, SIZE, SIZE, channels)), rng.integers(-127, 128, (out, channels, 3, 3)).astype(np.int8)
        arrays |= {f"convolution.{i}.x": x, f"convolution.{i}.w": w, f"convolution.{i}.y": convolution(x, w)}
    if not saturating:
        raise SystemExit("nothing saturates here: run it on a CPU without VNNI, or an emulated one")
    np.savez_compressed(OUT, **arrays)
    print(OUT, onnxruntime.__version__)


if __name__ == "__main__":
    main()
