"""The choice of tokens as a single node: what becomes one, and what stays."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
import pytest
from tiny_model import tiny_models

from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.fuse_sampling import fuse_sampling

INPUTS = ("logits", "uniforms", "forced_tokens", "top_k", "top_p")


@pytest.fixture(scope="module")
def tiny() -> ir.Model:
    var, vqvae = tiny_models(0)
    return build_stage_graph(var, vqvae.quantize)


def operators(model: ir.Model) -> Counter[str]:
    """All but those of more_smooth, which are as they were in any graph."""
    names = [(node.op_type, str(node.name)) for node in model.graph.all_nodes()]
    return Counter(op_type for op_type, name in names if not name.startswith("smooth"))


def add_output(model: ir.Model, value: ir.Value) -> None:
    extra = ir.node("Identity", [value], name="extra")
    model.graph.append(extra)
    extra.outputs[0].name, extra.outputs[0].type, extra.outputs[0].shape = "extra", value.type, value.shape
    model.graph.outputs.append(extra.outputs[0])


def named(value: ir.Value | None) -> str:
    """A value, or what it is cut from."""
    assert value is not None
    node = value.producer()
    if node is not None and node.op_type == "Slice":
        value = node.inputs[0]
    assert value is not None
    return str(value.name)


def test_sampling_becomes_one_node(tiny):
    fused = fuse_sampling(tiny)
    left = operators(fused)
    assert left["Sample"] == 1
    assert not {"TopK", "CumSum", "If", "GatherND", "Where"} & left.keys()
    (sample,) = [node for node in fused.graph if node.op_type == "Sample"]
    assert tuple(named(value) for value in sample.inputs) == INPUTS
    assert sample.outputs[0].name == "tokens"
    assert [(v.name, v.type, v.shape) for v in fused.graph.outputs] == [
        (v.name, v.type, v.shape) for v in tiny.graph.outputs
    ]


def test_the_graph_is_valid_and_the_pass_finds_nothing_more_in_it(tiny):
    fused = fuse_sampling(tiny)
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)
    assert ir.to_proto(fuse_sampling(fused)) == ir.to_proto(fused)


def test_what_something_else_reads_stays_as_well(tiny):
    model = tiny.clone()
    add_output(model, next(node for node in model.graph if node.op_type == "Exp").outputs[0])
    left = operators(fuse_sampling(model))
    assert (left["Sample"], left["Exp"], left["ReduceMax"], left["TopK"]) == (1, 1, 1, 0)


def test_a_threshold_that_something_else_reads_stays_whole(tiny):
    model = tiny.clone()
    filters = next(node for node in model.graph if node.op_type == "If")
    filters.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    filters.outputs[0].shape = ir.Shape([None, None, 1])
    add_output(model, filters.outputs[0])
    fused = fuse_sampling(model)
    left = operators(fused)
    assert (left["Sample"], left["If"], left["TopK"]) == (1, 1, 1)
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)


@pytest.mark.parametrize("changed", ["CumSum", "TopK"])
def test_another_sampler_stays_as_it_is(tiny, changed):
    model = tiny.clone()
    node = next(node for node in model.graph.all_nodes() if node.op_type == changed)
    passed = ir.node("Identity", [node.outputs[0]], name="passed")
    passed.outputs[0].name = "passed"
    node.outputs[0].replace_all_uses_with(passed.outputs[0])
    passed.replace_input_with(0, node.outputs[0])
    node.graph.insert_after(node, passed)
    assert operators(fuse_sampling(model)) == operators(model)
