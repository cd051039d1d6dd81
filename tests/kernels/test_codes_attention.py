"""Attention with caches of codes against NumPy, on each instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import attention_inputs
from cache_oracle import coded, dequantized
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]
Shape = tuple[int, int, int, int, int]  # rows, heads, size, tokens, past
SHAPES: list[Shape] = [
    (2, 1, 8, 1, 0),
    (2, 2, 64, 1, 5),
    (4, 3, 24, 9, 0),
    (2, 2, 64, 33, 22),
    (2, 1, 40, 49, 300),
    (2, 1, 16, 9, 119),
    (2, 1, 72, 8, 121),
    (2, 1, 128, 65, 95),
    (2, 1, 128, 300, 17),  # several tasks of one head
]
ORDER = (
    "query", "key", "value", "past_key", "past_value", "query_scale", "past_key_scale", "past_value_scale",
)  # fmt: skip
CACHES = ["present_key", "present_value", "present_key_scale", "present_value_scale"]
OUTPUTS = ["y", "", "", *CACHES]


def example(shape: Shape, seed: int = 0) -> dict[str, Any]:
    inputs = attention_inputs(shape, seed, scales=(1, 20))
    inputs["key"][0, :1, : shape[2]] = 0
    for name, axis in (("past_key", 2), ("past_value", 3)):
        inputs[name], inputs[f"{name}_scale"] = coded(inputs[name], axis)
    return {name: inputs[name] for name in ORDER}


def operator(library: Path, inputs: dict[str, Any], **options: Any) -> Operator:
    return Operator(library, "CodesAttention", inputs, OUTPUTS, heads=len(inputs["query_scale"]), **options)


def by_head(x: Array, heads: int) -> Array:
    rows, tokens, _ = x.shape
    return x.reshape(rows, tokens, heads, -1).transpose(0, 2, 1, 3)


def normalized(x: Array) -> Array:
    length = np.sqrt(np.square(x, dtype=np.float64).sum(-1, keepdims=True))
    return np.asarray(x / np.where(length == 0, 1, length))


def near_codes(found: Array, expected: Array) -> None:
    """Inverses of scales are rounded before they multiply: what lies next to a tie may be one code off."""
    steps = np.abs(found.astype(int) - expected)
    assert steps.max(initial=0) <= 1
    assert np.count_nonzero(steps) <= max(1, 0.001 * steps.size)


@pytest.mark.parametrize("shape", SHAPES)
def test_caches_grow_by_codes_which_attention_reads(ops_library: Path, isa: str, shape: Shape) -> None:
    inputs = example(shape)
    heads, past = len(inputs["query_scale"]), shape[4]
    y, keys, values, key_scales, value_scales = operator(ops_library, inputs, isa=isa)()
    np.testing.assert_array_equal(keys[..., :past], inputs["past_key"])
    np.testing.assert_array_equal(values[:, :, :past], inputs["past_value"])
    np.testing.assert_array_equal(key_scales[..., :past], inputs["past_key_scale"])
    np.testing.assert_array_equal(value_scales[:, :, :past], inputs["past_value_scale"])
    new_keys = normalized(by_head(inputs["key"], heads)).transpose(0, 1, 3, 2).astype(np.float32)
    codes, scale = coded(new_keys, 2)
    near_codes(keys[..., past:], codes)
    np.testing.assert_allclose(key_scales[..., past:], scale, rtol=1e-6)  # a key's length is rounded
    codes, scale = coded(np.ascontiguousarray(by_head(inputs["value"], heads)), 3)
    near_codes(values[:, :, past:], codes)
    np.testing.assert_array_equal(value_scales[:, :, past:], scale)
    # Attention is that of the codes that the operator itself gave.
    k, v = dequantized(keys, key_scales).astype(np.float64), dequantized(values, value_scales).astype(np.float64)
    query_scale = inputs["query_scale"].astype(np.float64)
    logits = normalized(by_head(inputs["query"], heads)) * query_scale[:, None, None] @ k
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    exact = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(y.shape)
    # Logits up to 20 have roundings of 2^-20; tiles' halves as kernels/src/kernels/attention_tiles.h derives it.
    allowed = 2e-5 * np.abs(v).max()
    if isa in ("amx", "emulated"):
        allowed += 3 * 2.0**-16 * (2 * float(query_scale.max()) + 1) * np.abs(v).max()
    assert np.abs(y - exact).max() <= allowed


@pytest.mark.parametrize("shape", [(4, 3, 64, 100, 55), (2, 1, 24, 300, 20)])
def test_threads_batches_and_instruction_sets_give_the_same_bits(ops_library: Path, isa: str, shape: Shape) -> None:
    inputs = example(shape)
    of = isa if isa in ("amx", "emulated") else "portable"  # tiles round in their own way
    one = operator(ops_library, inputs, isa=of)()
    for threads in (1, 2, 3):
        for a, b in zip(one, operator(ops_library, inputs, isa=isa, threads=threads)(), strict=True):
            np.testing.assert_array_equal(a, b)
    rows = [0, len(inputs["query"]) // 2]
    single = {name: x if name == "query_scale" else x[rows] for name, x in inputs.items()}
    for a, b in zip(one, operator(ops_library, single, isa=isa)(), strict=True):
        np.testing.assert_array_equal(a[rows], b)


@pytest.mark.parametrize("tokens", [1, 33])
def test_caches_that_nothing_reads_are_not_made(ops_library: Path, isa: str, tokens: int) -> None:
    inputs = example((4, 2, 24, tokens, 40))
    unknown = dict.fromkeys(("u_scale", "u_zero_point", "d_scale", "d_zero_point"))
    expected, *_ = operator(ops_library, inputs, isa=isa)()
    run = operator(ops_library, inputs | unknown | {"last": np.array(True)}, isa=isa, threads=2)
    y, *caches = run()
    np.testing.assert_array_equal(y, expected)
    assert [x.shape for x in caches] == [(4, 2, 24, 0), (4, 2, 0, 24), (4, 2, 1, 0), (4, 2, 0, 1)]
    assert run(last=np.array(False))[1].shape == (4, 2, 24, 40 + tokens)


def test_what_does_not_fit_is_said(ops_library: Path) -> None:
    inputs = example((2, 2, 16, 3, 5))
    for changed, words in (
        ({"past_value": inputs["past_value"][:, :, 1:]}, r"the input past_value has the shape \[2, 2, 4, 16\]"),
        ({"past_key_scale": inputs["past_key_scale"][..., 1:]}, r"past_key_scale has the shape \[2, 2, 1, 4\]"),
        ({"past_value_scale": inputs["past_value_scale"][:, :1]}, r"past_value_scale has the shape \[2, 1, 5, 1\]"),
    ):
        with pytest.raises(Exception, match=words):
            operator(ops_library, inputs | changed)()
