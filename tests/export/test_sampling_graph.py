"""Sampling inside the graph and by the fused operator, in ONNX Runtime, against the contract's words in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from operator_session import ISAS, Operator, has_instruction_set

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.sampling_graph import sample
from nextscale.models.var import reference
from nextscale.runtime._session import SessionOptions, session_settings
from tests.goldens.parity import SAMPLER_SETTINGS, sampler_logits

Sampler = Callable[..., NDArray[np.int64]]
SETTINGS = pytest.mark.parametrize(("top_k", "top_p"), [*SAMPLER_SETTINGS, (7, 1.0), (0, 1.0), (0, 1e-6), (256, 0.0)])
# float32 cumulation of 256 weights: 256 roundings of half an ulp of the total.
ROUNDING = 256 * 2**-24


@functools.cache
def model(vocab_size: int) -> onnx.ModelProto:
    builder = new_builder("sampling")
    floats, integers = ir.DataType.FLOAT, ir.DataType.INT64
    inputs = [
        builder.input("logits", floats, ["B", "l", vocab_size]),
        builder.input("uniforms", floats, ["B", "l"]),
        builder.input("forced", integers, ["B", "l"]),
        builder.input("top_k", integers, []),
        builder.input("top_p", floats, []),
    ]
    add_output(builder, sample(builder.op, *inputs), "tokens", integers, ["B", "l"])
    return ir.to_proto(finish(builder))


@functools.cache
def session_of(vocab_size: int) -> onnxruntime.InferenceSession:
    settings = session_settings(SessionOptions(threads=1))
    return onnxruntime.InferenceSession(
        model(vocab_size).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


@functools.cache
def operator_of(library: Path, isa: str) -> Operator:
    none = np.zeros((0, 0), np.float32)
    inputs = {
        "logits": none[None],
        "uniforms": none,
        "forced": none.astype(np.int64),
        "top_k": np.array(0),
        "top_p": np.array(0, np.float32),
    }
    return Operator(library, "Sample", inputs, ["tokens"], isa=isa)


@pytest.fixture(scope="module", params=["graph", *ISAS])
def draw(request: pytest.FixtureRequest) -> Sampler:
    """Tokens [B, l] of logits [B, l, V], by the graph or by the operator on an instruction set."""
    library: Path | None = None
    if request.param != "graph":
        library = request.getfixturevalue("ops_library")
        if not has_instruction_set(library, request.param):
            pytest.skip(f"this processor has no {request.param}")

    def run(
        logits: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        top_k: int = 0,
        top_p: float = 0.0,
        forced: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        feeds = {
            "logits": np.ascontiguousarray(logits),
            "uniforms": uniforms,
            "forced": np.full(uniforms.shape, -1) if forced is None else forced,
            "top_k": np.array(top_k),
            "top_p": np.array(top_p, np.float32),
        }
        if library is not None:
            return operator_of(library, request.param)(**feeds)[0]
        (tokens,) = session_of(logits.shape[-1]).run(["tokens"], feeds)
        return tokens

    return run


def kept(logits: NDArray[np.float32], top_k: int, top_p: float) -> NDArray[np.bool_]:
    """docs/bundle.md, entry by entry: float32 [V] -> bool [V]."""
    keep = np.ones(len(logits), bool)
    if top_k:
        keep = logits >= np.sort(logits)[-top_k]
    if top_p:
        mass = np.where(keep, np.exp(logits.astype(np.float64) - logits.max()), 0)
        better = np.array([mass[logits > value].sum() for value in logits])
        keep &= better < np.float32(top_p) * mass.sum()
    return keep


def boundaries(logits: NDArray[np.float32], keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cumulated probability of the kept entries in codebook order: [V]."""
    mass = np.where(keep, np.exp(logits.astype(np.float64) - logits.max()), 0)
    return mass.cumsum() / mass.sum()


def drawn_everywhere(draw: Sampler, logits: NDArray[np.float32], top_k: int, top_p: float, u: int) -> NDArray[np.int64]:
    """The tokens of `u` uniforms spread evenly over [0, 1)."""
    uniforms = (np.arange(u, dtype=np.float32) / u)[None]
    return draw(np.broadcast_to(logits, (1, u, len(logits))), uniforms, top_k, top_p)[0]


@pytest.mark.parametrize("vocab_size", [1, 7, 256])
def test_the_graph_is_valid(vocab_size: int) -> None:
    onnx.checker.check_model(model(vocab_size), full_check=True)


@SETTINGS
def test_tokens_are_those_of_the_contract(draw: Sampler, top_k: int, top_p: float) -> None:
    """Except where a uniform lies so near a boundary that float32 may round it to the other side."""
    uniforms = np.random.default_rng(0).random((1, 2000), np.float32)
    for logits in sampler_logits():
        tokens = draw(np.broadcast_to(logits, (1, 2000, 256)), uniforms, top_k, top_p)[0]
        edges = boundaries(logits, kept(logits, top_k, top_p))
        expected = (edges <= uniforms[0, :, None]).sum(-1)
        clear = np.abs(edges - uniforms[0, :, None]).min(-1) > ROUNDING
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(tokens[clear], expected[clear])


@SETTINGS
def test_tokens_are_those_of_the_torch_reference(draw: Sampler, top_k: int, top_p: float) -> None:
    logits = np.repeat(sampler_logits(), 50, axis=0)
    uniforms = np.random.default_rng(1).random(len(logits), np.float32)
    expected = reference.sample(torch.from_numpy(logits), torch.from_numpy(uniforms), top_k, top_p)
    np.testing.assert_array_equal(draw(logits[None], uniforms[None], top_k, top_p)[0], expected)


@given(
    logits=st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.0, 0.03, 0.3, 0.6, 0.9, 1.0]),
)
def test_exactly_the_kept_entries_are_drawn_ties_included(
    draw: Sampler, logits: list[int], top_k: int, top_p: float
) -> None:
    """The smallest probability here is e^-6 / 8 = 1 in 3,200: enough uniforms reach every entry."""
    row, top_k = np.array(logits, np.float32), min(top_k, len(logits))
    keep = kept(row, top_k, top_p)
    tokens = drawn_everywhere(draw, row, top_k, top_p, 2**13)
    assert set(tokens.tolist()) == set(np.flatnonzero(keep).tolist())


def test_top_p_counts_entries_tied_with_the_kth(draw: Sampler) -> None:
    """top_k = 2 keeps all three; the smaller two then have 1/2 better than them, below 0.6 of the whole."""
    logits = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    assert set(drawn_everywhere(draw, logits, 2, 0.6, 64).tolist()) == {0, 1, 2}


def test_entries_are_cumulated_in_codebook_order(draw: Sampler) -> None:
    logits = np.log(np.array([0.2, 0.1, 0.4, 0.3], np.float32))
    uniforms = np.array([[0.0, 0.19, 0.21, 0.31, 0.71]], np.float32)
    assert draw(np.broadcast_to(logits, (1, 5, 4)), uniforms).tolist() == [[0, 0, 1, 2, 3]]


@pytest.mark.parametrize("u", [1 - 2**-24, 1 - 2**-23, 1.0])
def test_the_largest_uniforms_take_the_last_kept_entry(draw: Sampler, u: float) -> None:
    logits = np.log(np.array([[[0.5, 0.2, 0.2, 0.1]]], np.float32))
    uniforms = np.full((1, 1), u, np.float32)
    assert draw(logits, uniforms, top_k=3).tolist() == [[2]]
    assert draw(logits, uniforms).tolist() == [[3]]


@pytest.mark.parametrize("u", [1 - 2**-24, 1 - 2**-23, 1.0])
def test_the_largest_uniforms_stay_out_of_blocks_without_a_kept_entry(draw: Sampler, u: float) -> None:
    logits = np.zeros((1, 1, 256), np.float32)
    logits[..., [3, 100]] = [1.0, 2.0]
    assert draw(logits, np.full((1, 1), u, np.float32), top_k=2).tolist() == [[100]]


def test_a_uniform_of_0_takes_the_first_kept_entry(draw: Sampler) -> None:
    logits = np.log(np.array([[[0.1, 0.2, 0.2, 0.5]]], np.float32))
    uniforms = np.zeros((1, 1), np.float32)
    assert draw(logits, uniforms).tolist() == [[0]]
    assert draw(logits, uniforms, top_k=3).tolist() == [[1]]


@pytest.mark.parametrize("vocab_size", [4, 256])
def test_a_uniform_on_a_boundary_takes_the_entry_after_it(draw: Sampler, vocab_size: int) -> None:
    """The cumulated probability must exceed it. Of equal logits all sums are exact."""
    tokens = drawn_everywhere(draw, np.zeros(vocab_size, np.float32), 0, 0.0, vocab_size)
    np.testing.assert_array_equal(tokens, np.arange(vocab_size))


def test_a_top_p_above_1_leaves_what_top_k_keeps(draw: Sampler) -> None:
    logits = np.array([1.0, 0.0, 2.0, 0.0], np.float32)
    assert set(drawn_everywhere(draw, logits, 2, 1.5, 2**8).tolist()) == {0, 2}


def test_every_uniform_gives_an_entry_of_the_codebook(draw: Sampler) -> None:
    """However many weights are cumulated, and however they round."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (1, 200, 4096)).astype(np.float32)
    tokens = draw(logits, np.full((1, 200), 1 - 2**-24, np.float32))
    assert tokens.max() < 4096


def test_however_sums_round_no_entry_without_probability_is_taken(draw: Sampler) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (1, 200, 64)).astype(np.float32)
    logits[..., 50:] = -np.inf
    assert draw(logits, np.full((1, 200), 1 - 2**-24, np.float32)).max() < 50


def test_top_k_of_1_is_greedy(draw: Sampler) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 20, 64)).astype(np.float32)
    np.testing.assert_array_equal(draw(logits, rng.random((3, 20), np.float32), top_k=1), logits.argmax(-1))


@pytest.mark.parametrize("largest", [1.0, 0.0, -1.0, 1e-45, 3e38])
def test_neighbouring_numbers_are_told_apart(draw: Sampler, largest: float) -> None:
    value = np.float32(largest)
    logits = np.array([np.nextafter(value, np.float32(-np.inf)), value], np.float32)
    assert set(drawn_everywhere(draw, logits, 1, 0.0, 16).tolist()) == {1}
    assert set(drawn_everywhere(draw, logits, 0, 0.01, 16).tolist()) == {1}


def test_large_logits_do_not_overflow(draw: Sampler) -> None:
    logits = np.array([[[500.0, 501.0, -500.0]]], np.float32)
    assert draw(logits, np.full((1, 1), 0.2, np.float32)).tolist() == [[0]]  # 1 / (1 + e) = 0.27
    assert draw(logits, np.full((1, 1), 0.3, np.float32)).tolist() == [[1]]


def test_forced_tokens_are_taken(draw: Sampler) -> None:
    rng = np.random.default_rng(0)
    logits, uniforms = rng.normal(size=(2, 3, 8)).astype(np.float32), rng.random((2, 3), np.float32)
    free = draw(logits, uniforms)
    forced = np.array([[7, -1, 0], [-1, -1, 3]])
    np.testing.assert_array_equal(draw(logits, uniforms, forced=forced), np.where(forced < 0, free, forced))
