"""IntegerAttention against the NumPy oracle of the stock operators' form, on each instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import attention_inputs, mix, scores
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]
# (rows, heads, size, tokens, past); an image has two rows
SHAPES = [(2, 1, 8, 1, 0), (2, 2, 64, 9, 5), (4, 2, 24, 33, 20), (2, 1, 96, 5, 1018), (2, 2, 64, 130, 90)]
WEIGHTS = ("uniform", "row", "log2", "log2-row")
OUTPUTS = ["y", "key", "value", "overflow"]
THETA, PLACES = 0.012, 7


def example(shape: tuple[int, int, int, int, int], seed: int = 0) -> dict[str, Any]:
    return {**attention_inputs(shape, seed, scales=(4, 12)), "stage": np.array(1)}


def operands(inputs: dict[str, Any]) -> tuple[Array, Array, Array]:
    """q [R, H, l, d], k [R, H, d, T] and v [R, H, T, d] in float32."""
    rows, tokens, _ = inputs["query"].shape
    scale = inputs["query_scale"]

    def by_head(name: str) -> Array:
        x: Array = inputs[name].reshape(rows, tokens, len(scale), -1).transpose(0, 2, 1, 3)
        return x

    def unit(x: Array) -> Array:
        return x / np.sqrt((x * x).sum(-1, keepdims=True))

    q = unit(by_head("query")) * scale[:, None, None]
    k = np.concatenate([inputs["past_key"], unit(by_head("key")).transpose(0, 1, 3, 2)], 3)
    return q, k, np.concatenate([inputs["past_value"], by_head("value")], 2)


def expected_of(
    inputs: dict[str, Any],
    weights: str,
    bits: int,
    attentive: bool,
    magnitudes: tuple[float, float, float] | None = None,
) -> Array:
    """[R, l, C]."""
    q, k, v = operands(inputs)
    product, scale = scores(q, k, bits, 2, None if magnitudes is None else magnitudes[:2])
    logits = product.astype(np.float32) * scale
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a = (a / a.sum(-1, keepdims=True)).astype(np.float32)
    theta = THETA if attentive else None
    y = mix(a, v, weights, bits, 2, theta, PLACES, None if magnitudes is None else magnitudes[2])
    return y.transpose(0, 2, 1, 3).reshape(inputs["query"].shape)


@cache
def expected_of_example(shape: tuple[int, int, int, int, int], weights: str, bits: int, attentive: bool) -> Array:
    """Once for all instruction sets."""
    return expected_of(example(shape), weights, bits, attentive)


def operator(
    library: Path, inputs: dict[str, Any], weights: str, bits: int, attentive: bool, **options: Any
) -> Operator:
    if attentive:
        options |= {"theta": THETA, "places": [0, PLACES]}
    return Operator(
        library,
        "IntegerAttention",
        inputs,
        OUTPUTS,
        heads=len(inputs["query_scale"]),
        bits=bits,
        image_rows=2,
        weights=weights,
        **options,
    )


def assert_near(y: Array, expected: Array) -> None:
    """Equal but where float32's rounding moved a code over a tie: a few rows, by what one code is worth."""
    size = np.abs(expected).max()
    wrong = np.abs(y - expected) > 1e-5 * size
    assert wrong.mean() <= 0.04
    assert np.abs(y - expected).max() <= 0.1 * size


@pytest.mark.parametrize("attentive", [False, True], ids=["plain", "shift-and-sum"])
@pytest.mark.parametrize("bits", [3, 6, 8])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantizers(
    ops_library: Path, isa: str, shape: tuple[int, int, int, int, int], weights: str, bits: int, attentive: bool
) -> None:
    if isa in ("portable", "emulated") and shape[4] > 1000 and bits != 8:
        pytest.skip("slow in plain C++")
    inputs = example(shape)
    y, keys, values, _ = operator(ops_library, inputs, weights, bits, attentive, isa=isa)()
    _, k, v = operands(inputs)
    np.testing.assert_allclose(keys, k, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(values, v)
    assert_near(y, expected_of_example(shape, weights, bits, attentive))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_static_ranges(ops_library: Path, isa: str, weights: str, bits: int) -> None:
    inputs, magnitudes = example((4, 2, 64, 20, 30)), (9.0, 0.5, 3.0)
    y, *_ = operator(ops_library, inputs, weights, bits, False, isa=isa, magnitudes=list(magnitudes))()
    assert_near(y, expected_of(inputs, weights, bits, False, magnitudes))


def test_attentive_tokens_without_a_place_are_counted(ops_library: Path, isa: str) -> None:
    inputs = example((4, 2, 64, 33, 20))
    *_, overflow = operator(ops_library, inputs, "log2", 8, True, isa=isa)()
    q, k, _ = operands(inputs)
    product, scale = scores(q, k, 8, 2)
    logits = (product * scale).astype(np.float64)
    a = np.exp(logits - logits.max(-1, keepdims=True))
    attentive = ((a / a.sum(-1, keepdims=True)).mean(2) > THETA).sum(-1)
    assert overflow == np.maximum(attentive - PLACES, 0).sum()
    assert overflow > 0


@cache
def of_portable_code(
    library: Path, shape: tuple[int, int, int, int, int], weights: str, attentive: bool
) -> list[Array]:
    """What all instruction sets must give."""
    return operator(library, example(shape), weights, 8, attentive, isa="portable")()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("attentive", [False, True], ids=["plain", "shift-and-sum"])
def test_threads_batches_and_instruction_sets_give_the_same_bits(
    ops_library: Path, isa: str, weights: str, attentive: bool
) -> None:
    shape = (4, 3, 40, 70, 31)
    inputs, one = example(shape), of_portable_code(ops_library, shape, weights, attentive)
    for threads in (1, 2, 3, 8):
        found = operator(ops_library, inputs, weights, 8, attentive, isa=isa, threads=threads)()
        for a, b in zip(one, found, strict=True):
            np.testing.assert_array_equal(a, b)
    single = {name: x if name in ("query_scale", "stage") else x[[0, 2]] for name, x in inputs.items()}
    for a, b in zip(one[:3], operator(ops_library, single, weights, 8, attentive, isa=isa)()[:3], strict=True):
        np.testing.assert_array_equal(a[[0, 2]], b)


@settings(max_examples=30, deadline=None, print_blob=True)
@given(
    images=st.integers(0, 3),
    heads=st.integers(1, 3),
    eighths=st.integers(1, 16),
    tokens=st.integers(0, 40),
    past=st.integers(0, 150),
    bits=st.integers(5, 8),
    weights=st.sampled_from(WEIGHTS),
    attentive=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(
    ops_library: Path,
    images: int,
    heads: int,
    eighths: int,
    tokens: int,
    past: int,
    bits: int,
    weights: str,
    attentive: bool,
    seed: int,
) -> None:
    inputs = example((2 * images, heads, 8 * eighths, tokens, past), seed)
    y, keys, values, overflow = operator(ops_library, inputs, weights, bits, attentive, threads=2)()
    assert (y.shape, keys.shape[3], values.shape[2]) == (inputs["query"].shape, past + tokens, past + tokens)
    if not y.size:
        assert overflow == 0
        np.testing.assert_array_equal(keys[:, :, :, :past], inputs["past_key"])
        return
    expected = expected_of(inputs, weights, bits, attentive)
    assert np.sqrt(np.square(y - expected).mean()) <= 0.05 * np.sqrt(np.square(expected).mean()) + 1e-6


def test_two_sessions_at_once(ops_library: Path) -> None:
    inputs = example((4, 3, 40, 70, 31))
    runs = [operator(ops_library, inputs, weights, 8, True, threads=2) for weights in ("row", "log2")]
    expected = [run() for run in runs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: runs[i % 2](), range(16)))
    for i, outputs in enumerate(found):
        for a, b in zip(outputs, expected[i % 2], strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_said(ops_library: Path) -> None:
    inputs = example((2, 2, 16, 3, 5))
    for options, words in (
        ({"weights": "log3"}, "weights is 'log3'"),
        ({"weights": "row", "magnitudes": [1.0, 2.0]}, "magnitudes has 2 numbers, expected 3 or none"),
        ({"weights": "row", "places": [3]}, "the input stage is 1, expected 0 to 0"),
        ({"weights": "row", "theta": 2.0}, "theta must be 0 to 1"),
    ):
        with pytest.raises(Exception, match=words):
            Operator(ops_library, "IntegerAttention", inputs, OUTPUTS, heads=2, image_rows=2, **options)()
    many = example((2, 1, 8, 1, 2**16))
    with pytest.raises(Exception, match="there are 65537 keys, expected at most 65536"):
        Operator(ops_library, "IntegerAttention", many, OUTPUTS, heads=1, image_rows=2, weights="row")()
    single = {name: x if name in ("query_scale", "stage") else x[:1] for name, x in inputs.items()}
    of_one_row = Operator(ops_library, "IntegerAttention", single, OUTPUTS, heads=2, image_rows=2, weights="row")
    with pytest.raises(Exception, match="images have 2 rows, found 1 in all"):
        of_one_row()
