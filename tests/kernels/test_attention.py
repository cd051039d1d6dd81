"""Attention against NumPy and against ONNX Runtime's own operators, on each instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from attention_oracle import attention_inputs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from operator_oracle import unrounded_codes
from operator_session import Operator

Array = NDArray[Any]
# (rows, heads, size, tokens, past)
SHAPES = [
    (2, 1, 8, 1, 0),
    (2, 2, 64, 1, 5),
    (4, 3, 24, 9, 0),
    (2, 2, 64, 33, 22),
    (2, 1, 96, 5, 1018),
    (2, 2, 128, 17, 30),
    (2, 1, 40, 49, 1500),
    (2, 1, 16, 9, 119),  # one whole block of keys, and the fewest queries that tiles take
    (2, 1, 72, 8, 121),  # one key more; the most queries that vectors take everywhere
    (2, 1, 48, 1, 1022),
    (2, 1, 128, 65, 95),  # queries of two passes and one more, keys of one and a step
    (2, 2, 8, 16, 0),
]
NAMES = ("query", "key", "value", "past_key", "past_value", "query_scale")


def example(shape: tuple[int, int, int, int, int], seed: int = 0) -> dict[str, Any]:
    inputs = attention_inputs(shape, seed, scales=(1, 20))
    inputs["query"][0, :1, : shape[2]] = 0
    return inputs


def attention(inputs: dict[str, Any], number: type) -> tuple[Array, Array, Array]:
    """The result [R, l, C] and the caches, computed in `number`."""
    query, key, value, past_key, past_value, scale = (inputs[name].astype(number) for name in NAMES)
    rows, tokens, width = query.shape
    heads = len(scale)

    def by_head(x: Array) -> Array:
        return x.reshape(rows, tokens, heads, -1).transpose(0, 2, 1, 3)

    def normalized(x: Array) -> Array:
        length = np.sqrt((x * x).sum(-1, keepdims=True))
        result: Array = x / np.where(length == 0, number(1), length)
        return result

    q, k, v = normalized(by_head(query)) * scale[:, None, None], normalized(by_head(key)), by_head(value)
    keys = np.concatenate([past_key, k.transpose(0, 1, 3, 2)], 3)
    values = np.concatenate([past_value, v], 2)
    logits = q @ keys
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ values).transpose(0, 2, 1, 3).reshape(rows, tokens, width), keys, values


def operator(library: Path, inputs: dict[str, Any], outputs: list[str], **options: Any) -> Operator:
    return Operator(library, "Attention", inputs, outputs, heads=len(inputs["query_scale"]), **options)


def stock(inputs: dict[str, Any]) -> Array:
    """What ONNX Runtime makes of the same with its own operators: [R, l, C]."""
    heads = len(inputs["query_scale"])
    node = helper.make_node
    nodes = [
        *(node("Reshape", [x, "split"], [f"{x}.heads"]) for x in ("query", "key", "value")),
        *(node("LpNormalization", [f"{x}.heads"], [f"{x}.unit"], axis=-1, p=2) for x in ("query", "key")),
        node("Transpose", ["query.unit"], ["q.unscaled"], perm=[0, 2, 1, 3]),
        node("Mul", ["q.unscaled", "scale"], ["q"]),
        node("Transpose", ["key.unit"], ["k"], perm=[0, 2, 3, 1]),
        node("Transpose", ["value.heads"], ["v"], perm=[0, 2, 1, 3]),
        node("Concat", ["past_key", "k"], ["keys"], axis=3),
        node("Concat", ["past_value", "v"], ["values"], axis=2),
        node("MatMul", ["q", "keys"], ["logits"]),
        node("Softmax", ["logits"], ["weights"], axis=-1),
        node("MatMul", ["weights", "values"], ["mixed"]),
        node("Transpose", ["mixed"], ["by token"], perm=[0, 2, 1, 3]),
        node("Reshape", ["by token", "joined"], ["y"]),
    ]
    feeds = {name: inputs[name] for name in NAMES[:5]}
    feeds["scale"] = inputs["query_scale"].reshape(1, heads, 1, 1)
    feeds["split"] = np.array([0, 0, heads, -1])
    feeds["joined"] = np.array([0, 0, -1])
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    graph = helper.make_graph(nodes, "stock", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: Array = session.run(None, feeds)[0]
    return y


def of_halves(inputs: dict[str, Any], values: Array) -> float:
    """What numbers of two halves of bfloat16 add to the error, as kernels/src/kernels/attention_tiles.h derives it."""
    return 3 * 2.0**-16 * (2 * float(inputs["query_scale"].max()) + 1) * float(np.abs(values).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_as_near_as_the_stock_operators(
    ops_library: Path, isa: str, shape: tuple[int, int, int, int, int]
) -> None:
    inputs = example(shape)
    y, keys, values = operator(ops_library, inputs, ["y", "", "", "key", "value"], isa=isa)()
    exact, exact_keys, exact_values = attention(inputs, np.float64)
    np.testing.assert_allclose(keys, exact_keys, atol=3e-7, rtol=0)
    np.testing.assert_array_equal(values, exact_values.astype(np.float32))
    # float32's own error of the same shapes, twice: another order of sums may be a little worse or better.
    allowed = 2 * max(np.abs(stock(inputs) - exact).max(), 1e-7)
    if isa in ("amx", "emulated"):
        allowed += of_halves(inputs, exact_values)
    assert np.abs(y - exact).max() <= allowed
    # Roundings of both signs: plain bfloat16, or two of the three products, would have 2^-9.
    assert np.sqrt(np.square(y - exact).mean()) <= 2.0**-16 * np.abs(exact_values).max()


def test_codes_of_a_pair(ops_library: Path, isa: str) -> None:
    inputs = example((4, 2, 64, 21, 10))
    known = {
        "u_scale": np.array(0.02, np.float32),
        "u_zero_point": np.array(100, np.uint8),
        "d_scale": np.array(0.03, np.float32),
        "d_zero_point": np.array(60, np.uint8),
    }
    outputs = ["", "codes", "difference", "key", "value"]
    u, d, *_ = operator(ops_library, inputs | known, outputs, isa=isa, ranges="pair", bits=7)()
    y, _, values = attention(inputs, np.float64)
    error = 1e-5 + (of_halves(inputs, values) if isa in ("amx", "emulated") else 0)
    assert np.all(np.abs(u - unrounded_codes(y[2:], 0.02, 100, 7)) <= 0.5 + error / 0.02)
    assert np.all(np.abs(d - unrounded_codes(y[:2] - y[2:], 0.03, 60, 7)) <= 0.5 + 2 * error / 0.03)


@pytest.mark.parametrize("shape", [(4, 3, 64, 100, 55), (2, 5, 40, 65, 7), (2, 1, 24, 300, 20)])
def test_threads_batches_and_instruction_sets_give_the_same_bits(
    ops_library: Path, isa: str, shape: tuple[int, int, int, int, int]
) -> None:
    inputs, outputs = example(shape), ["y", "", "", "key", "value"]
    of = isa if isa in ("amx", "emulated") else "portable"  # tiles round in their own way
    one = operator(ops_library, inputs, outputs, isa=of)()
    for threads in (1, 2, 3, 8):
        for a, b in zip(one, operator(ops_library, inputs, outputs, isa=isa, threads=threads)(), strict=True):
            np.testing.assert_array_equal(a, b)
    rows = [0, len(inputs["query"]) // 2]
    single = {name: x if name == "query_scale" else x[rows] for name, x in inputs.items()}
    for a, b in zip(one, operator(ops_library, single, outputs, isa=isa)(), strict=True):
        np.testing.assert_array_equal(a[rows], b)


def test_no_tokens_leave_the_caches_as_they_are(ops_library: Path, isa: str) -> None:
    inputs = example((2, 2, 16, 0, 5))
    y, keys, values = operator(ops_library, inputs, ["y", "", "", "key", "value"], isa=isa)()
    assert y.shape == (2, 0, 32)
    np.testing.assert_array_equal(keys, inputs["past_key"])
    np.testing.assert_array_equal(values, inputs["past_value"])


@pytest.mark.parametrize("tokens", [1, 33])
def test_caches_that_nothing_reads_are_not_made(ops_library: Path, isa: str, tokens: int) -> None:
    inputs = example((4, 2, 24, tokens, 40))
    unknown = dict.fromkeys(("u_scale", "u_zero_point", "d_scale", "d_zero_point"))
    outputs = ["y", "", "", "key", "value"]
    expected, *_ = operator(ops_library, inputs, outputs, isa=isa)()
    for threads in (1, 3):
        run = operator(ops_library, inputs | unknown | {"last": np.array(True)}, outputs, isa=isa, threads=threads)
        y, keys, values = run()
        np.testing.assert_array_equal(y, expected)
        assert (keys.shape, values.shape) == ((4, 2, 24, 0), (4, 2, 0, 24))
        assert run(last=np.array(False))[1].shape == (4, 2, 24, 40 + tokens)


def test_many_keys(ops_library: Path, isa: str) -> None:
    """As many as Infinity's last stage has."""
    size = 8 if isa in ("portable", "emulated") else 128  # plain C++ is slow
    inputs = example((2, 1, size, 40, 10481))
    (y, *_) = operator(ops_library, inputs, ["y", "", "", "key", "value"], isa=isa)()
    exact, _, values = attention(inputs, np.float64)
    allowed = 2 * max(np.abs(stock(inputs) - exact).max(), 1e-7)
    assert np.abs(y - exact).max() <= allowed + (of_halves(inputs, values) if isa in ("amx", "emulated") else 0)


@pytest.mark.parametrize("tokens", [1, 16])
def test_one_key_may_outweigh_all_before(ops_library: Path, isa: str, tokens: int) -> None:
    """What was mixed of the blocks before fades to nothing, or nearly, in the last block."""
    inputs = example((1, 1, 8, tokens, 500))
    inputs["query"][:] = inputs["key"][:] = np.eye(8, dtype=np.float32)[0]
    inputs["past_key"][:, :, 0] = np.linspace(-1, 0.5, 500)
    for scale in (1.0, 10.0, 100.0):
        inputs["query_scale"][:] = scale
        y, *_ = operator(ops_library, inputs, ["y", "", "", "key", "value"], isa=isa)()
        exact, _, values = attention(inputs, np.float64)
        allowed = 1e-5 + (of_halves(inputs, values) if isa in ("amx", "emulated") else 0)
        assert np.abs(y - exact).max() <= allowed


def test_what_does_not_fit_is_said(ops_library: Path) -> None:
    inputs = example((2, 2, 16, 3, 5))
    unknown = dict.fromkeys(("u_scale", "u_zero_point", "d_scale", "d_zero_point"))
    outputs = ["y", "", "", "key", "value"]
    for changed, words in (
        ({"key": inputs["key"][:, 1:]}, r"the input key has the shape \[2, 2, 32\], expected \[2, 3, 32\]"),
        ({"past_value": inputs["past_value"][:, :, 1:]}, r"the input past_value has the shape \[2, 2, 4, 16\]"),
        ({"query_scale": np.ones(3, np.float32)}, "query has 32 channels, expected 3 heads"),
        (unknown | {"last": np.array([True, False])}, "the input last must have one element"),
    ):
        with pytest.raises(Exception, match=words):
            operator(ops_library, inputs | changed, outputs)()
