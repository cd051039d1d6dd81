"""Caches that no stage reads: which attentions leave them out, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_model import tiny_models

from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.drop_last_caches import drop_last_caches
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.fuse_attention import fuse_attention
from nextscale.graph_passes.fuse_integer_attention import fuse_integer_attention
from nextscale.graph_passes.layer_facts import STAGE_INPUT

STAGES = 4
Feeds = dict[str, NDArray[Any]]


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("Attention", "IntegerAttention")]


@pytest.fixture(scope="module", params=["float", "integer", "shift and sum"])
def fused(request: pytest.FixtureRequest) -> ir.Model:
    var, vqvae = tiny_models(0)
    model = build_stage_graph(var, vqvae.quantize)
    if request.param == "float":
        return fuse_attention(model)
    names = [str(node.name) for node in model.graph if str(node.name).endswith(".mix")]
    places = ShiftAndSum("residual", 0.05, (0, 1, 2, 3), count_overflow=True) if request.param != "integer" else None
    return fuse_integer_attention(model, "row", 8, 2, None, places, STAGE_INPUT, names)


def run(model: ir.Model, library: Path, feeds: Feeds) -> Feeds:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def feeds_of(model: ir.Model, stage: int, past: int) -> Feeds:
    """Of one image at a stage with `past` tokens before it."""
    rng = np.random.default_rng(stage)
    sizes = {"B": 1, "2B": 2, "T": past, "M": 0, "N": 0, "L": 1}
    fixed: Feeds = {"stage": np.array(stage), "cfg_scale": np.array(2, np.float32), "top_k": np.array(1)}
    fixed |= {"top_p": np.array(0, np.float32), "class_labels": np.array([1])}
    feeds: Feeds = {}
    for value in model.graph.inputs:
        assert value.name is not None
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else sizes.get(str(dim.value), 1) for dim in value.shape]
        is_map = value.name in ("uniforms", "forced_tokens")
        if value.name in fixed:
            feeds[value.name] = fixed[value.name]
        elif is_map:
            length = value.shape[1]
            assert isinstance(length, int)
            forced = np.full((1, length), -1)
            feeds[value.name] = rng.random((1, length), np.float32) if value.name == "uniforms" else forced
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def test_only_the_last_stage_leaves_the_caches_out(fused, ops_library):
    dropped = drop_last_caches(fused, STAGE_INPUT, [STAGES])
    # Of the modulation, the first stage makes the state.
    first = feeds_of(fused, 0, 0)
    modulation = run(fused, ops_library, first)["present.modulation"]
    for stage in range(STAGES):
        feeds = feeds_of(fused, stage, 5 * stage) | ({"modulation": modulation} if stage else {})
        expected, found = (run(model, ops_library, feeds) for model in (fused, dropped))
        for name, value in expected.items():
            is_cache = name.endswith((".key", ".value"))
            if is_cache and stage == STAGES - 1:
                assert found[name].size == 0
                assert found[name].shape[3 if name.endswith("key") else 2] == 0
            else:
                np.testing.assert_array_equal(found[name], value)


def test_each_size_has_its_last_stage(fused, ops_library):
    model = fused.clone()
    model.graph.inputs.append(ir.val("size", ir.DataType.INT64, ir.Shape([])))
    dropped = drop_last_caches(model, STAGE_INPUT, [STAGES, 1], "size")
    for size, is_last in ((0, False), (1, True)):
        found = run(dropped, ops_library, feeds_of(fused, 0, 0) | {"size": np.array(size)})
        caches = [value for name, value in found.items() if name.endswith((".key", ".value"))]
        assert [cache.size == 0 for cache in caches] == [is_last] * len(caches)


def test_caches_that_something_reads_stay(fused):
    model = fused.clone()
    caches = attentions(model)[0].outputs[1 if "Integer" in attentions(model)[0].op_type else 3]
    extra = ir.node("Identity", [caches], name="extra")
    model.graph.append(extra)
    first, *others = attentions(drop_last_caches(model, STAGE_INPUT, [STAGES]))
    assert len(first.inputs) == len(attentions(fused)[0].inputs)
    assert all(len(node.inputs) > len(first.inputs) for node in others)


def test_a_graph_without_fused_attention_stays_as_it_is():
    var, vqvae = tiny_models(0)
    model = build_stage_graph(var, vqvae.quantize)
    assert ir.to_proto(drop_last_caches(model, STAGE_INPUT, [STAGES])) == ir.to_proto(model)
