"""Caches in 8 bits: the graph's form, its numbers against NumPy, and what stays in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cache_oracle import coded, dequantized
from numpy.typing import NDArray
from onnxscript import OpBuilder
from tiny_model import tiny_models

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.infinity.stage_graph import build_stage_graph
from nextscale.export.var.stage_graph import build_stage_graph as build_var_stage_graph
from nextscale.graph_passes.drop_last_caches import drop_last_caches
from nextscale.graph_passes.fuse_attention import fuse_attention
from nextscale.graph_passes.layer_facts import SIZE_INPUT, STAGE_INPUT
from nextscale.graph_passes.quantize_caches import quantize_caches, unquantized_caches
from tests.infinity_stages import InfinityStages, all_stages
from tests.tiny_infinity import CONFIG, SIZE, tiny_infinity

D = 8
FLOAT = ir.DataType.FLOAT
Arrays = dict[str, NDArray[Any]]
Caches = tuple[ir.Value, ir.Value]
NAMES = ["past_key_values.0.key", "past_key_values.0.value"]


def attention_model(join: Callable[[OpBuilder, Caches, Caches], Caches], outputs: int = 2) -> ir.Model:
    """softmax(query keys) values; `join` makes the caches of those past and new, of which so many are outputs."""
    builder = new_builder("attention")
    op = builder.op
    query = builder.input("query", FLOAT, ["R", "H", "l", D])
    past = builder.input(NAMES[0], FLOAT, ["R", "H", D, "T"]), builder.input(NAMES[1], FLOAT, ["R", "H", "T", D])
    new = builder.input("key", FLOAT, ["R", "H", D, "l"]), builder.input("value", FLOAT, ["R", "H", "l", D])
    key, value = join(op, past, new)
    y = op.MatMul(op.Softmax(op.MatMul(query, key), axis=-1), value)
    add_output(builder, y, "y", FLOAT, ["R", "H", "l", D])
    shapes: list[list[int | str]] = [["R", "H", D, "T + l"], ["R", "H", "T + l", D]]
    for cache, name, shape in list(zip((key, value), ("present.0.key", "present.0.value"), shapes, strict=True))[
        :outputs
    ]:
        add_output(builder, cache, name, FLOAT, shape)
    return finish(builder)


def joined(op: OpBuilder, past: Caches, new: Caches) -> Caches:
    return op.Concat(past[0], new[0], axis=3), op.Concat(past[1], new[1], axis=-2)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return attention_model(joined)


@pytest.fixture(scope="module")
def stage() -> ir.Model:
    return build_stage_graph(tiny_infinity(), [SIZE])


def run(model: ir.Model, arrays: Arrays, library: Path | None = None) -> Arrays:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    if library is not None:
        settings.register_custom_ops_library(str(library))
    serialized = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def described(values: Any) -> dict[str, tuple[str, list[int | str]]]:
    return {
        value.name: (str(value.dtype), [size if isinstance(size, int) else size.value for size in value.shape])
        for value in values
    }


def test_caches_become_codes_and_scales(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString()
    changed = quantize_caches(model)
    inputs, outputs = described(changed.graph.inputs), described(changed.graph.outputs)
    assert list(inputs) == ["query", NAMES[0], f"{NAMES[0]}_scale", NAMES[1], f"{NAMES[1]}_scale", "key", "value"]
    assert inputs[NAMES[0]] == ("UINT8", ["R", "H", D, "T"])
    assert inputs[f"{NAMES[0]}_scale"] == ("FLOAT", ["R", "H", 1, "T"])
    assert inputs[f"{NAMES[1]}_scale"] == ("FLOAT", ["R", "H", "T", 1])
    assert list(outputs) == ["y", "present.0.key", "present.0.key_scale", "present.0.value", "present.0.value_scale"]
    assert outputs["present.0.value"] == ("UINT8", ["R", "H", "T + l", D])
    assert outputs["present.0.key_scale"] == ("FLOAT", ["R", "H", 1, "T + l"])
    assert ir.to_proto(model).SerializeToString() == before


def test_once_is_enough(model: ir.Model) -> None:
    once = quantize_caches(model)
    assert ir.to_proto(quantize_caches(once)).SerializeToString() == ir.to_proto(once).SerializeToString()
    assert unquantized_caches(once) == []


def test_the_graph_is_valid_before_and_after(model: ir.Model, stage: ir.Model) -> None:
    for graph in (model, stage):
        for checked in (graph, quantize_caches(graph)):
            onnx.checker.check_model(ir.to_proto(checked), full_check=True)


@pytest.mark.parametrize("seed", range(12))
def test_numbers(model: ir.Model, seed: int) -> None:
    """Codes and scales are NumPy's to the bit, and attention is that of what they stand for."""
    rng = np.random.default_rng(seed)
    r, h, length, past = (int(size) for size in rng.integers([1, 1, 1, 0], [3, 3, 20, 20], endpoint=True))
    arrays: Arrays = {
        "query": rng.standard_normal((r, h, length, D), np.float32),
        "key": rng.standard_normal((r, h, D, length), np.float32) * 10 ** rng.uniform(-3, 3),
        "value": rng.standard_normal((r, h, length, D), np.float32),
    }
    arrays["value"][:, :, 0] = 0  # a token of nothing has a scale, too
    for name, axis in zip(NAMES, (2, 3), strict=True):
        shape = [(r, h, D, past), (r, h, past, D)][axis - 2]
        arrays[name], arrays[f"{name}_scale"] = coded(rng.standard_normal(shape, np.float32), axis)
    found = run(quantize_caches(model), {name: np.asarray(x) for name, x in arrays.items()})
    caches = []
    for part, axis in (("key", 2), ("value", 3)):
        name = f"past_key_values.0.{part}"
        codes, scale = coded(arrays[part].astype(np.float32), axis)
        expected = np.concatenate([arrays[name], codes], 5 - axis)
        expected_scale = np.concatenate([arrays[f"{name}_scale"], scale], 5 - axis)
        np.testing.assert_array_equal(found[f"present.0.{part}"], expected, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(found[f"present.0.{part}_scale"], expected_scale, err_msg=f"seed {seed}")
        caches.append(dequantized(expected, expected_scale).astype(np.float64))
    scores = arrays["query"].astype(np.float64) @ caches[0]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ caches[1]
    # Sums of d = 8 products, of which float32 may be wrong by 8 roundings of the largest.
    error = 1e-5 + 2 * 8 * 2.0**-24 * float(np.abs(arrays["query"]).max() * np.abs(caches[0]).max()) * D
    np.testing.assert_allclose(
        found["y"], y, rtol=0, atol=error * float(np.abs(caches[1]).max() + 1), err_msg=str(seed)
    )


def read_twice(op: OpBuilder, past: Caches, new: Caches) -> Caches:
    key, value = joined(op, past, new)
    return key, op.Add(value, op.ReduceMax(past[1], keepdims=1))


def not_joined(op: OpBuilder, past: Caches, new: Caches) -> Caches:
    return op.Concat(past[0], new[0], axis=3), op.Mul(past[1], 2.0, _name="double")


def joined_elsewhere(op: OpBuilder, past: Caches, new: Caches) -> Caches:
    return op.Concat(past[0], new[0], axis=3), op.Concat(past[1], new[1], axis=0, _name="rows")


@pytest.mark.parametrize(
    ("join", "outputs", "reason"),
    [
        (read_twice, 2, "past_key_values.0.value: 2 nodes read it, expected the one that adds this stage's tokens"),
        (not_joined, 2, "past_key_values.0.value: double is Mul, no Concat of it and this stage's tokens"),
        (joined_elsewhere, 2, "past_key_values.0.value: rows joins another axis than that of the tokens"),
        (joined, 1, "past_key_values.0.value: "),
    ],
)
def test_what_stays_in_float_is_told(join: Callable[..., Caches], outputs: int, reason: str) -> None:
    model = attention_model(join, outputs)
    (refused,) = unquantized_caches(model)
    assert str(refused).startswith(reason)
    types = {value.name: value.dtype for value in quantize_caches(model).graph.inputs}
    assert (types[NAMES[0]], types[NAMES[1]]) == (ir.DataType.UINT8, FLOAT)
    if outputs == 1:
        assert str(refused).endswith("is no output of the graph")


def test_text_and_latents_stay_as_they_are(stage: ir.Model) -> None:
    """Of a whole stage only what grows by the stages' tokens is coded."""
    coded_inputs = [value.name for value in quantize_caches(stage).graph.inputs if value.dtype == ir.DataType.UINT8]
    expected = [f"past_key_values.{i}.{part}" for i in range(CONFIG.depth) for part in ("key", "value")]
    assert coded_inputs == expected
    assert unquantized_caches(stage) == []


def test_var_has_such_caches_too() -> None:
    var, vqvae = tiny_models(0)
    model = build_var_stage_graph(var, vqvae.quantize)
    assert unquantized_caches(model) == []
    coded_inputs = [value for value in quantize_caches(model).graph.inputs if value.dtype == ir.DataType.UINT8]
    assert len(coded_inputs) == 2 * var.config.depth


def test_a_generation_with_coded_caches_is_near_that_with_float_ones(stage: ir.Model) -> None:
    """Log-odds of forced bits: a step of 1/127 of the largest channel is a relative error of some 0.5% of keys and
    values, which attention averages."""
    features = np.random.default_rng(0).standard_normal((1, 4, CONFIG.text_channels)).astype(np.float32)
    float_stages = InfinityStages(stage, CONFIG, [SIZE])
    expected = float_stages.run(float_stages.feeds(features, cfg_scale=1.5))
    bits = all_stages(expected, "tokens")
    coded_stages = InfinityStages(quantize_caches(stage), CONFIG, [SIZE])
    found = coded_stages.run(coded_stages.feeds(features, cfg_scale=1.5, forced_bits=bits))
    difference = all_stages(found, "logits") - all_stages(expected, "logits")
    relative = np.sqrt(np.square(difference).mean() / np.square(all_stages(expected, "logits")).mean())
    assert 1e-5 < relative < 0.02
    # The first block's first keys and values are those of float, coded.
    for part, axis in (("key", 2), ("value", 3)):
        codes, scale = coded(expected[0][f"present.0.{part}"], axis)
        np.testing.assert_array_equal(found[0][f"present.0.{part}"], codes)
        np.testing.assert_array_equal(found[0][f"present.0.{part}_scale"], scale)


def test_the_fused_operator_takes_and_gives_codes(stage: ir.Model, ops_library: Path) -> None:
    """Fused and stock graphs carry the same codes but where a rounding lies next to a tie, and nothing after the last
    stage."""
    fused = quantize_caches(fuse_attention(stage))
    operators = [node.op_type for node in fused.graph if node.domain == "nextscale"]
    assert operators == ["CodesAttention"] * CONFIG.depth
    fused = drop_last_caches(fused, STAGE_INPUT, [SIZE.num_stages], SIZE_INPUT)
    assert ir.to_proto(quantize_caches(fused)).SerializeToString() == ir.to_proto(fused).SerializeToString()
    stock = InfinityStages(quantize_caches(stage), CONFIG, [SIZE])
    features = np.random.default_rng(1).standard_normal((2, 3, CONFIG.text_channels)).astype(np.float32)
    feeds = stock.feeds(features, cfg_scale=2)
    state = stock.initial(feeds)
    for si in range(SIZE.num_stages):
        expected = stock.step(feeds, state, si)
        found = run(fused, {**feeds, **state, "stage": np.array(si)}, ops_library)
        assert list(found) == list(expected)
        for name, array in expected.items():
            if not name.startswith("present.") or name.startswith("present.text"):
                continue
            if name.rsplit(".", 1)[-1].startswith(("key", "value")):
                if si == SIZE.num_stages - 1:
                    assert found[name].size == 0
                elif array.dtype == np.uint8:
                    steps = np.abs(found[name].astype(int) - array)
                    assert steps.max() <= 1
                    assert steps.mean() < 0.002
                else:
                    np.testing.assert_allclose(found[name], array, rtol=1e-4)
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=0.05)
        state = {name: expected[f"present.{name.removeprefix('past_key_values.')}"] for name in state}
