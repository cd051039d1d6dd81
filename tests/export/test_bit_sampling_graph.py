"""Sampling of bits inside the graph, in ONNX Runtime, against the reference, which equals the official sampler."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nextscale.export.bit_sampling_graph import sample_bits
from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.models.infinity import reference
from nextscale.runtime._session import SessionOptions, session_settings
from tests.goldens.infinity_parity import SAMPLER_TOP_PS, sampler_logits

SHAPE = ["B", "l", "D"]


@functools.cache
def session() -> onnxruntime.InferenceSession:
    builder = new_builder("sampling")
    floats, integers = ir.DataType.FLOAT, ir.DataType.INT64
    inputs = [
        builder.input("logits", floats, SHAPE),
        builder.input("uniforms", floats, SHAPE),
        builder.input("forced", integers, SHAPE),
        builder.input("tau", floats, [1]),
        builder.input("top_p", floats, []),
    ]
    add_output(builder, sample_bits(builder.op, *inputs), "tokens", integers, SHAPE)
    settings = session_settings(SessionOptions(threads=1))
    serialized = ir.to_proto(finish(builder)).SerializeToString()
    return onnxruntime.InferenceSession(serialized, settings, providers=["CPUExecutionProvider"])


def bits_of(
    logits: NDArray[np.float32],
    uniforms: NDArray[np.float32],
    top_p: float = 0,
    tau: float = 1,
    forced: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The graph's bits of logits and uniforms of one shape, [N]."""
    forced = np.full(logits.shape, -1) if forced is None else forced
    feeds = {
        name: array[None, None] for name, array in (("logits", logits), ("uniforms", uniforms), ("forced", forced))
    }
    scalars = {"tau": np.array([tau], np.float32), "top_p": np.array(top_p, np.float32)}
    found: NDArray[np.int64] = session().run(None, feeds | scalars)[0][0, 0]
    return found


@pytest.mark.parametrize("tau", [1, 0.5, 1e-4])
@pytest.mark.parametrize("top_p", SAMPLER_TOP_PS)
def test_bits_are_the_references(top_p: float, tau: float) -> None:
    """At and around the edges of top_p, and where exp overflows; uniforms include 0 and the largest below 1."""
    logits = sampler_logits()
    edges = np.float32([0, -0.0, 1e-30, 200, -200, 3e5, -3e5])
    log_odds = np.concatenate((logits[:, 1] - logits[:, 0], edges))
    uniforms = np.concatenate((np.random.default_rng(0).random(500, np.float32), np.float32([0, 0.5, 1 - 2**-24])))
    x, u = (grid.ravel() for grid in np.meshgrid(log_odds, uniforms))
    expected = reference.sample_bits(
        torch.from_numpy(x / np.float32(tau)), torch.from_numpy(u), float(np.float32(top_p))
    )
    np.testing.assert_array_equal(bits_of(x, u, top_p, tau), expected.numpy())


def test_a_bit_is_1_from_the_probability_of_0_on() -> None:
    """Of log-odds ln 3 that is a quarter, of 0 a half, which float32 has exactly; the uniforms are next to it."""
    logits = np.float32([np.log(3), np.log(3), 0, 0])
    assert bits_of(logits, np.float32([0.2499, 0.2501, 0.5 - 2**-25, 0.5])).tolist() == [0, 1, 0, 1]


def test_of_two_equally_probable_values_1_is_the_certain_one() -> None:
    logits, uniforms = np.float32([0, 0]), np.float32([0.1, 0.9])
    assert bits_of(logits, uniforms, top_p=0.5).tolist() == [1, 1]
    assert bits_of(logits, uniforms, top_p=0.51).tolist() == [0, 1]


def test_bits_are_drawn_with_their_probability() -> None:
    """Evenly spaced uniforms give a share that is exact to one draw."""
    draws = 10_000
    uniforms = ((np.arange(draws) + 0.5) / draws).astype(np.float32)
    for log_odds in (-3.0, 0.2, 4.0):
        share = bits_of(np.full(draws, log_odds, np.float32), uniforms, tau=2).mean()
        assert abs(share - 1 / (1 + np.exp(-log_odds / 2))) <= 1.5 / draws


def test_forced_bits_are_taken() -> None:
    logits, uniforms = np.float32([9, 9, -9, -9, 9, -9]), np.full(6, 0.5, np.float32)
    forced = np.array([0, 1, 0, 1, -1, -1])
    for top_p in (0, 0.97):
        assert bits_of(logits, uniforms, top_p, forced=forced).tolist() == [0, 1, 0, 1, 1, 0]
