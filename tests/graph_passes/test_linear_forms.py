"""Linear layers of every number of axes, two of which share a weight, against integer arithmetic in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes.linear_layers import nearest
from nextscale.graph_passes.qparams import ActivationQParams, QuantizedWeight, Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token

K, N = 12, 9
LEADING = {2: (6,), 3: (3, 5), 4: (2, 3, 4), 5: (2, 2, 2, 3)}
LAYERS = ("a", "b")
BITS, WEIGHT_BITS, ZERO_POINT = 6, 4, 10
LOW, HIGH = -2.5, 3.0

Floats = NDArray[np.float32]
Codes = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
WEIGHT = np.random.default_rng(0).normal(0, K**-0.5, (K, N)).astype(np.float32)
BIAS = np.random.default_rng(1).normal(size=N).astype(np.float32)


def layers(rank: int | None) -> ir.Model:
    """y_a = x w + bias, y_b = z w; of rank None nothing is known of the inputs' shapes."""
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    leading = [] if rank is None else [*LEADING[rank]]
    x, z = (builder.input(name, ir.DataType.FLOAT, [*leading, K]) for name in ("x", "z"))
    y_a = op.Add(op.MatMul(x, constants("weight", WEIGHT), _name="a"), constants("bias", BIAS))
    y_b = op.MatMul(z, constants("weight", WEIGHT), _name="b")
    for name, value in (("y_a", y_a), ("y_b", y_b)):
        add_output(builder, value, name, ir.DataType.FLOAT, [*leading, N])
    model = finish(builder)
    if rank is None:
        for value in model.graph.inputs:
            value.shape = None
    return model


def by_tensor(model: ir.Model, packed: bool) -> ir.Model:
    known = Range(np.array([LOW], np.float32), np.array([HIGH], np.float32))
    return quantize_linear(model, dict.fromkeys(LAYERS, known), None, BITS, nearest(WEIGHT_BITS), packed)


def by_image(model: ir.Model, packed: bool) -> ir.Model:
    return quantize_linear_by_image(model, dict.fromkeys(LAYERS, 1), BITS, nearest(WEIGHT_BITS), packed)


def by_token(model: ir.Model, packed: bool) -> ir.Model:
    return quantize_linear_by_token(model, dict.fromkeys(LAYERS, ZERO_POINT), BITS, nearest(WEIGHT_BITS), packed)


def tensor_codes(x: Floats) -> Codes:
    qparams = ActivationQParams.from_range(Range(np.array([LOW], np.float32), np.array([HIGH], np.float32)), BITS)
    scale, zero = qparams.scale[0], int(qparams.zero_point[0])
    codes = np.clip(np.round(x / scale).astype(np.int64) + zero, 0, 2**BITS - 1)
    return codes, np.array(zero), np.float64(scale)


def image_codes(x: Floats) -> Codes:
    """A range for each entry of the first axis, that holds zero."""
    axes = tuple(range(1, x.ndim))
    low, high = np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0)
    scale = (high - low) / np.float32(2**BITS - 1)
    zero = np.clip(np.round(-low / scale), 0, 2**BITS - 1).astype(np.int64)
    return np.clip(np.round(x / scale).astype(np.int64) + zero, 0, 2**BITS - 1), zero, scale.astype(np.float64)


def token_codes(x: Floats) -> Codes:
    qmax = 2**BITS - 1
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scale = np.maximum(high / np.float32(qmax - ZERO_POINT), -low / np.float32(ZERO_POINT))
    codes = np.clip(np.round(x / scale).astype(np.int64) + ZERO_POINT, 0, qmax)
    return codes, np.array(ZERO_POINT), scale.astype(np.float64)


WAYS: dict[str, tuple[Callable[[ir.Model, bool], ir.Model], Callable[[Floats], Codes]]] = {
    "tensor": (by_tensor, tensor_codes),
    "image": (by_image, image_codes),
    "token": (by_token, token_codes),
}


@pytest.mark.exact_products
@pytest.mark.parametrize("packed", [False, True], ids=["codes", "packed"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", LEADING)
def test_every_number_of_axes(rank: int, way: str, packed: bool) -> None:
    make, codes_of = WAYS[way]
    model = make(layers(rank), packed)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [name for name in model.graph.initializers if name.startswith("weight.") and name.endswith("scale")] == [
        "weight.scale"
    ]
    assert "weight" not in model.graph.initializers
    rng = np.random.default_rng(2)
    x, z = (rng.normal(size=(*LEADING[rank], K)).astype(np.float32) for _ in range(2))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y_a, y_b = session.run(None, {"x": x, "z": z})
    weight = QuantizedWeight.per_channel(WEIGHT, 1, WEIGHT_BITS)
    for found, inputs, bias in ((y_a, x, BIAS), (y_b, z, np.zeros(N, np.float32))):
        codes, zero, scale = codes_of(inputs)
        integers = weight.codes.astype(np.int64)
        exact = ((codes - zero) @ integers) * (scale * weight.scale) + bias
        # A few roundings to float32, of the two terms that cancel, and of the sum with the bias.
        terms = (np.abs(codes @ integers) + np.abs(zero * integers.sum(axis=0))) * (scale * weight.scale)
        assert found.shape == exact.shape
        assert (np.abs(found - exact) <= 8 * 2**-24 * (terms + np.abs(bias))).all()


@pytest.mark.parametrize("way", ["image", "token"])
@pytest.mark.parametrize(("shape", "found"), [(None, "an unknown number of axes"), ([K], "one axis")])
def test_what_would_be_wrong_is_refused(way: str, shape: list[int] | None, found: str) -> None:
    model = layers(None)
    for value in model.graph.inputs:
        value.shape = None if shape is None else ir.Shape(shape)
    with pytest.raises(ValueError, match=f"the input of 'a' has {found}; expected 2 or more"):
        WAYS[way][0](model, False)
