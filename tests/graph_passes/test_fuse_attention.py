"""Attention as single nodes: what fits, what does not and why; the integer form's structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
import onnx_ir as ir
import pytest
from tiny_model import tiny_models

from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.fuse_attention import fuse_attention, unfused_attentions
from nextscale.graph_passes.fuse_integer_attention import fuse_integer_attention, fused_attentions
from nextscale.graph_passes.layer_facts import STAGE_INPUT
from nextscale.graph_passes.quantize_attention import Magnitudes

PLACES = (0, 1, 2, 3)
MAGNITUDES = Magnitudes(6.0, 1.0, 2.5)


def stage_graph(**options: object) -> ir.Model:
    var, vqvae = tiny_models(0, **options)
    return build_stage_graph(var, vqvae.quantize)


@pytest.fixture(scope="module")
def tiny() -> ir.Model:
    return stage_graph()


def mixes(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph if str(node.name).endswith(".mix")]


def fused_integer(
    model: ir.Model,
    magnitudes: dict[str, Magnitudes] | None = None,
    shift_and_sum: ShiftAndSum | None = None,
    names: Sequence[str] | None = None,
) -> ir.Model:
    names = mixes(model) if names is None else names
    return fuse_integer_attention(model, "log2", 6, 2, magnitudes, shift_and_sum, STAGE_INPUT, names)


def operators(model: ir.Model) -> Counter[str]:
    """All but those of more_smooth, which have a softmax of their own."""
    return Counter(node.op_type for node in model.graph if not str(node.name).startswith("smooth"))


def contract(model: ir.Model) -> list[tuple[str, str, str]]:
    return [(str(value.name), str(value.dtype), str(value.shape)) for value in model.graph.outputs]


def test_float_attention_takes_its_norms_transposes_and_caches_with_it(tiny):
    before, after = operators(tiny), operators(fuse_attention(tiny))
    assert after["Attention"] == 2
    assert not {"Softmax", "LpNormalization"} & after.keys()
    # The operands of a head, three of each attention, and the latents of the embedding and the accumulation.
    assert before["Transpose"] - after["Transpose"] == 4 * 2
    assert contract(fuse_attention(tiny)) == contract(tiny)


@pytest.mark.parametrize("fuse", [fuse_attention, fused_integer])
def test_the_graph_is_valid_and_the_pass_finds_nothing_more_in_it(tiny, fuse):
    fused = fuse(tiny)
    onnx.checker.check_model(ir.to_proto(fused), full_check=True)
    assert ir.to_proto(fuse(fused)) == ir.to_proto(fused)


def test_attention_without_normalized_operands_stays_and_is_named():
    model = stage_graph(attn_l2_norm=False)
    for fused in (fuse_attention(model), fused_integer(model)):
        assert operators(fused) == operators(model)
    found = unfused_attentions(model)
    assert [refusal.node.name for refusal in found] == mixes(model)
    assert "not multiplied by a constant of each head" in str(found[0])


def test_weights_that_something_else_reads_stay(tiny):
    model = tiny.clone()
    mix = next(node for node in model.graph if str(node.name).endswith("attn.mix"))
    extra = ir.node("Identity", [mix.outputs[0]], name="extra")
    model.graph.append(extra)
    extra.outputs[0].name, extra.outputs[0].dtype = "extra", ir.DataType.FLOAT
    model.graph.outputs.append(extra.outputs[0])
    assert operators(fuse_attention(model))["Attention"] == 1
    assert "not joined by a Transpose" in str(unfused_attentions(model)[0])


def test_integer_attention_says_how_it_is_quantized(tiny):
    fused = fused_integer(tiny)
    assert fused_attentions(fused) == set(mixes(tiny))
    nodes = [node for node in fused.graph if node.op_type == "IntegerAttention"]
    for node in nodes:
        assert {name: attribute.value for name, attribute in node.attributes.items()} == {
            "heads": 2,
            "bits": 6,
            "image_rows": 2,
            "weights": "log2",
        }
        assert len(node.inputs) == 6
        assert node.inputs[5] is not None
        assert node.inputs[5].shape == [2]
    assert contract(fused) == contract(tiny)


def test_static_ranges_and_attentive_tokens_go_along(tiny):
    names = mixes(tiny)
    fused = fused_integer(
        tiny, dict.fromkeys(names, MAGNITUDES), ShiftAndSum("residual", 0.05, PLACES, count_overflow=True)
    )
    node = next(node for node in fused.graph if node.op_type == "IntegerAttention")
    assert list(node.attributes["magnitudes"].as_floats()) == [6.0, 1.0, 2.5]
    assert tuple(node.attributes["places"].as_ints()) == PLACES
    assert node.attributes["theta"].as_float() == pytest.approx(0.05)
    assert node.inputs[6] is not None
    assert node.inputs[6].name == STAGE_INPUT
    counters = [value for value in fused.graph.outputs if str(value.name).startswith("overflow.")]
    assert [value.name for value in counters] == [f"overflow.{name}" for name in names]
    assert {value.dtype for value in counters} == {ir.DataType.INT64}


def test_attention_that_is_not_named_stays(tiny):
    names = mixes(tiny)
    fused = fused_integer(tiny, names=names[:1])
    assert fused_attentions(fused) == {names[0]}
    assert operators(fused)["Softmax"] == 1
