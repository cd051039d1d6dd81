"""Structure, what stays joined, refusals to guess, and bit-equal numbers of the built stage graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import OpBuilder
from stage_runs import run_stages
from tiny_model import tiny_source

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.graph_passes.integer_model import IntegerModel
from nextscale.graph_passes.layer_facts import GUIDED_AXIS
from nextscale.graph_passes.linear_layers import nearest
from nextscale.graph_passes.qparams import Range
from nextscale.graph_passes.quantize_linear import quantize_linear
from nextscale.graph_passes.quantize_linear_pairs import PairRanges, quantize_linear_pairs
from nextscale.graph_passes.recipe import load_recipe
from nextscale.graph_passes.split_rows import split_rows
from nextscale.models.var.layers import facts_of

FLOAT = ir.DataType.FLOAT


def graph(joined: bool = True, first: str = GUIDED_AXIS, offset: str = "B") -> ir.Model:
    """y = the difference of the halves of gelu(x * scale) + z, with x = [a; b] or an input."""
    builder = new_builder("rows")
    op = builder.op
    if joined:
        x = op.Concat(builder.input("a", FLOAT, ["B", 4]), builder.input("b", FLOAT, ["B", 4]), axis=0)
    else:
        x = builder.input("x", FLOAT, [first, 4])
    z = builder.input("z", FLOAT, [first if offset == "B" else 1, 4])
    scale = builder.initializer(ir.tensor(np.arange(4, dtype=np.float32), name="scale"), "scale")
    h = op.Add(op.Gelu(op.Mul(x, scale)), z)
    halves = op.Split(h, axis=0, num_outputs=2, _outputs=["upper", "lower"])
    add_output(builder, op.Sub(*halves), "y", FLOAT, ["B", 4])
    return finish(builder)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    proto = ir.to_proto(model).SerializeToString()
    (y,) = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(["y"], feeds)
    return y


def feeds_of(model: ir.Model, rows: int = 3) -> dict[str, NDArray[np.float32]]:
    rng, sizes = np.random.default_rng(0), {"B": rows, GUIDED_AXIS: 2 * rows, "1": 1, "4": 4}
    return {
        str(value.name): rng.normal(size=[sizes[str(size)] for size in value.shape or ()]).astype(np.float32)
        for value in model.graph.inputs
    }


def test_halves_that_were_joined_stay_apart() -> None:
    model = graph()
    apart = split_rows(model, GUIDED_AXIS)
    assert kinds(apart) == Counter({"Mul": 2, "Gelu": 2, "Add": 2, "Split": 1, "Sub": 1})
    feeds = feeds_of(model)
    np.testing.assert_array_equal(run(apart, feeds), run(model, feeds))


def test_an_input_that_holds_both_is_split_once() -> None:
    model = graph(joined=False)
    apart = split_rows(model, GUIDED_AXIS)
    assert kinds(apart) == Counter({"Mul": 2, "Gelu": 2, "Add": 2, "Split": 2, "Sub": 1})
    feeds = feeds_of(model)
    np.testing.assert_array_equal(run(apart, feeds), run(model, feeds))


@pytest.mark.parametrize("options", [{"first": "N", "joined": False}, {"offset": "1"}])
def test_what_may_not_hold_both_is_left_joined(options: dict[str, str]) -> None:
    """An axis of another size, or an operand that may broadcast, is no two halves."""
    model = graph(**options)  # type: ignore[arg-type]
    assert kinds(split_rows(model, GUIDED_AXIS)) == kinds(model)


def test_a_split_of_columns_is_left() -> None:
    builder = new_builder("columns")
    op: OpBuilder = builder.op
    x = op.Concat(builder.input("a", FLOAT, ["B", 4]), builder.input("b", FLOAT, ["B", 4]), axis=0)
    left, right = op.Split(x, axis=1, num_outputs=2, _outputs=["left", "right"])
    add_output(builder, op.Sub(left, right), "y", FLOAT, [GUIDED_AXIS, 2])
    model = finish(builder)
    assert kinds(split_rows(model, GUIDED_AXIS)) == kinds(model)


def test_the_model_is_not_changed_and_a_second_time_changes_nothing() -> None:
    model = graph()
    before = ir.to_proto(model).SerializeToString()
    once = split_rows(model, GUIDED_AXIS)
    assert ir.to_proto(model).SerializeToString() == before
    assert kinds(split_rows(once, GUIDED_AXIS)) == kinds(once)


def stage_graph(apart: bool) -> ir.Model:
    source = tiny_source()
    model = build_stage_graph(source.var, source.vqvae.quantize)
    layers, stages = IntegerModel.decide(load_recipe("default"), facts_of(source.var)), source.var.config.num_stages

    def both(largest: float) -> Range:
        ends = np.full(stages, largest, np.float32)
        return Range(-ends, ends)

    by_class = {name: Range(np.array([-1], np.float32), np.array([4], np.float32)) for name in layers.known}
    model = quantize_linear(model, dict.fromkeys(layers.static, both(4)) | by_class, "stage")
    pairs = dict.fromkeys(layers.pairs, PairRanges(both(4), both(1)))
    model = quantize_linear_pairs(model, pairs, "stage", 8, nearest())
    return split_rows(model, GUIDED_AXIS) if apart else model


def test_the_stage_graph_has_the_same_numbers_with_fewer_copies() -> None:
    """Of each block's 4 Splits and 6 Concats, attention keeps 1 and 3, beside the 2 Concats of its cache."""
    source, models = tiny_source(), [stage_graph(apart) for apart in (False, True)]
    before, after = (kinds(model) for model in models)
    blocks = source.var.config.depth
    assert before["Concat"] - after["Concat"] == 3 * blocks
    # The head's goes too; the embedded input and all modulations are split once, and modulations by column twice.
    assert before["Split"] - after["Split"] == 3 * blocks + 1 - 3
    for joined, apart in zip(*(run_stages(model, source) for model in models), strict=True):
        assert joined.keys() == apart.keys()
        for name, value in joined.items():
            np.testing.assert_array_equal(apart[name], value, err_msg=name)
