"""What makes the stage graph integer: the passes in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import share_constants
from nextscale.graph_passes.drop_last_caches import drop_last_caches
from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
from nextscale.graph_passes.fuse_attention import fuse_attention
from nextscale.graph_passes.fuse_epilogues import fuse_epilogues
from nextscale.graph_passes.fuse_integer_attention import fuse_integer_attention, fused_attentions
from nextscale.graph_passes.fuse_linear import fuse_linear
from nextscale.graph_passes.fuse_norm import fuse_norm
from nextscale.graph_passes.fuse_sampling import fuse_sampling
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import GUIDED_ROWS
from nextscale.graph_passes.linear_layers import WeightRounder
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_attention import Magnitudes, quantize_attention
from nextscale.graph_passes.quantize_caches import quantize_caches
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_dynamic import quantize_linear_by_image, quantize_linear_by_token
from nextscale.graph_passes.quantize_linear_pairs import PairRanges, quantize_linear_pairs
from nextscale.graph_passes.split_rows import split_rows


@dataclass(frozen=True)
class StagePlan:
    """What was decided about the stage graph, and what calibration found for it.

    Attributes:
        integer: what is integer, and how.
        ranges: of the inputs of static layers, observed or known: [S] by stage, or [1].
        pair_ranges: of the inputs of layers with a pair.
        rounder: makes the integer weights.
        magnitudes: of q, k and v, where attention is integer with static ranges.
        shift_and_sum: where the recipe asks for it.
    """

    integer: IntegerModel
    ranges: Mapping[str, Range]
    pair_ranges: Mapping[str, PairRanges]
    rounder: WeightRounder
    magnitudes: Mapping[str, Magnitudes] | None = None
    shift_and_sum: ShiftAndSum | None = None


def quantize_stage(stage_model: ir.Model, plan: StagePlan) -> ir.Model:
    """The integer stage graph of stock operators."""
    model = _quantized(stage_model, plan, rows_apart=True)
    return quantize_caches(model) if plan.integer.coded_caches else model


def fuse_stage(stage_model: ir.Model, plan: StagePlan, stock: ir.Model) -> ir.Model:
    """The integer stage graph of nextscale-ops' operators where they serve, over the constants of the stock one.

    Args:
        stage_model, plan: as `quantize_stage` took them.
        stock: what it gave.
    """
    # It is made of float attention, and so stands before what makes integer attention of stock operators.
    model = _with_integer_attention(fuse_integer_attention, stage_model, plan)
    # Operators take both rows of an image, which the stock graph keeps apart.
    model = _quantized(model, plan, rows_apart=False)
    model = fuse_linear(model, plan.integer)
    # Norms, epilogues and attention end in the codes that the layers behind them take.
    model = fuse_norm(model)
    model = fuse_epilogues(model)
    model = fuse_attention(model)
    # Attention is found by caches that are float.
    model = quantize_caches(model) if plan.integer.coded_caches else model
    model = fuse_sampling(model)
    facts = plan.integer.facts
    stages = facts.stages_by_size or (len(facts.layers[0].tokens),)
    model = drop_last_caches(model, facts.stage_input, stages, facts.size_input)
    share_constants(model.graph, stock.graph)
    return model


def _quantized(stage_model: ir.Model, plan: StagePlan, rows_apart: bool) -> ir.Model:
    integer, facts = plan.integer, plan.integer.facts
    weights = plan.rounder, integer.weights.packed
    # Attention first: its pattern is float MatMuls, and what is around it does not matter to it.
    model = _with_integer_attention(quantize_attention, stage_model, plan)
    # The ways of choosing ranges touch different layers and could stand in any order.
    model = quantize_linear(model, plan.ranges, facts.stage_input, integer.bits, *weights)
    model = quantize_linear_pairs(model, plan.pair_ranges, facts.stage_input, integer.bits, *weights)
    model = split_rows(model, facts.guided_axis) if plan.pair_ranges and rows_apart else model
    rows = {name: integer.layers[name].facts.rows for name in integer.by_image}
    model = quantize_linear_by_image(model, rows, integer.bits, *weights)
    return quantize_linear_by_token(model, integer.by_token, integer.bits, *weights)


def _with_integer_attention(make: Callable[..., ir.Model], model: ir.Model, plan: StagePlan) -> ir.Model:
    """The model with the attentions of the plan that are not single nodes yet as `make` makes them, one of two passes
    that take the same arguments."""
    attention = plan.integer.attention
    names = set() if attention is None else set(attention.names) - fused_attentions(model)
    if attention is None or not names:
        return model
    return make(
        model,
        attention.weights,
        attention.bits,
        GUIDED_ROWS,
        plan.magnitudes,
        plan.shift_and_sum,
        plan.integer.facts.stage_input,
        names,
    )
