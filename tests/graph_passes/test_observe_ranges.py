from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes.observe_ranges import (
    PARTS,
    channels_name,
    expose_inputs,
    input_name,
    observe_channels,
    observe_pairs,
    observe_ranges,
    observed_name,
    pairs_name,
)


@pytest.fixture
def model() -> ir.Model:
    """a and b read x; c reads tanh(b)."""
    rng = np.random.default_rng(0)
    builder = new_builder("layers")
    op, constants = builder.op, Constants(builder)
    x = builder.input("x", ir.DataType.FLOAT, ["B", "l", 8])
    outputs = {}
    for name, source in (("a", x), ("b", x), ("c", None)):
        weight = constants(f"{name}.weight", rng.normal(size=(8, 8)).astype(np.float32))
        outputs[name] = op.MatMul(op.Tanh(outputs["b"]) if source is None else source, weight, _name=name)
    for name in ("a", "c"):
        add_output(builder, outputs[name], f"{name}.y", ir.DataType.FLOAT, ["B", "l", 8])
    return finish(builder)


def run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def test_each_named_node_gets_an_output_and_nothing_else_changes(model: ir.Model) -> None:
    observed = observe_ranges(model, ["a", "c"])
    assert [value.name for value in model.graph.outputs] == ["a.y", "c.y"]
    names = [value.name for value in observed.graph.outputs]
    assert names == ["a.y", "c.y", observed_name("a"), observed_name("c")]
    count = len(list(model.graph))
    assert [node.op_type for node in list(observed.graph)[:count]] == [node.op_type for node in model.graph]
    assert not any(str(node.name).startswith("observe/") for node in model.graph)


def test_nodes_that_share_an_input_share_its_observer(model: ir.Model) -> None:
    op_types = [node.op_type for node in observe_ranges(model, ["a", "b", "c"]).graph]
    assert op_types.count("ReduceMin") == op_types.count("ReduceMax") == 2
    assert op_types.count("Identity") == 3


def test_channels_are_observed_apart(model: ir.Model) -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    observed = observe_channels(observe_ranges(model, ["a"]), ["a"])
    onnx.checker.check_model(ir.to_proto(observed), full_check=True)
    found = run(observed, x)
    np.testing.assert_array_equal(found[channels_name("a")], [x.min(axis=(0, 1)), x.max(axis=(0, 1))])
    np.testing.assert_array_equal(found[observed_name("a")], [x.min(), x.max()])


def test_no_names_observe_nothing(model: ir.Model) -> None:
    same = observe_ranges(model, [])
    assert ir.to_proto(same).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_an_unknown_node_is_refused(model: ir.Model) -> None:
    with pytest.raises(ValueError, match="no node of the main graph is named 'd'"):
        observe_ranges(model, ["a", "d"])


def test_the_graph_is_valid_before_and_after(model: ir.Model) -> None:
    for checked in (model, observe_ranges(model, ["a", "b", "c"])):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


def test_ranges_are_those_of_numpy_for_random_shapes(model: ir.Model) -> None:
    weight = model.graph.initializers["b.weight"].const_value
    assert weight is not None
    observed = observe_ranges(model, ["a", "b", "c"])
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        x = (rng.normal(size=(*rng.integers(1, 9, 2), 8)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        found = run(observed, x)
        for name in ("a", "b"):
            np.testing.assert_array_equal(found[observed_name(name)], [x.min(), x.max()])
        inner = np.tanh(x.astype(np.float64) @ weight.numpy())
        # Sums of 8 float32 products, then tanh, whose slope is at most 1.
        bound = 8 * 2**-23 * np.abs(x).max() * np.abs(weight.numpy()).max() + 2**-20
        np.testing.assert_allclose(found[observed_name("c")], [inner.min(), inner.max()], rtol=0, atol=bound)
        np.testing.assert_array_equal(found["c.y"], run(model, x)["c.y"])


# Pairs and inputs


def test_pairs_that_share_an_input_share_its_observers(model: ir.Model) -> None:
    observed = observe_pairs(model, ["a", "b", "c"])
    op_types = [node.op_type for node in observed.graph]
    assert op_types.count("Split") == op_types.count("Sub") == 2
    assert op_types.count("ReduceMin") == op_types.count("ReduceMax") == 4
    names = [value.name for value in observed.graph.outputs]
    assert names == ["a.y", "c.y", *(pairs_name(name, part) for name in "abc" for part in PARTS)]
    assert [value.name for value in model.graph.outputs] == ["a.y", "c.y"]


def test_pairs_and_inputs_of_no_names_are_nothing(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString()
    for same in (observe_pairs(model, []), expose_inputs(model, []), model):
        assert ir.to_proto(same).SerializeToString() == before


def test_pairs_and_inputs_of_an_unknown_node_are_refused(model: ir.Model) -> None:
    for make in (observe_pairs, expose_inputs):
        with pytest.raises(ValueError, match="no node of the main graph is named 'd'"):
            make(model, ["a", "d"])


def test_all_observers_together_are_a_valid_graph(model: ir.Model) -> None:
    every = ["a", "b", "c"]
    observed = expose_inputs(observe_pairs(observe_channels(observe_ranges(model, every), every), every), every)
    for checked in (model, observe_pairs(model, every), expose_inputs(model, every), observed):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)
    assert len(observed.graph.outputs) == 2 + 5 * len(every)


def test_pairs_are_those_of_numpy_for_random_shapes(model: ir.Model) -> None:
    """Of the rows without the class, which come second, and of what the class adds."""
    observed = observe_pairs(model, ["a", "c"])
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        images, tokens = rng.integers(1, 5, 2)
        x = (rng.normal(size=(2 * images, tokens, 8)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        found = run(observed, x)
        cond, uncond = np.split(x, 2)
        for part, values in (("uncond", uncond), ("difference", cond - uncond)):
            expected = [values.min(axis=(0, 1)), values.max(axis=(0, 1))]
            np.testing.assert_array_equal(found[pairs_name("a", part)], expected)
            assert found[pairs_name("c", part)].shape == (2, 8)
        np.testing.assert_array_equal(found["c.y"], run(model, x)["c.y"])


def test_exposed_inputs_are_the_inputs(model: ir.Model) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found = run(expose_inputs(model, ["a", "b", "c"]), x)
    np.testing.assert_array_equal(found[input_name("a")], x)
    np.testing.assert_array_equal(found[input_name("b")], x)
    weight = model.graph.initializers["c.weight"].const_value
    assert weight is not None
    # Sums of 8 float32 products.
    np.testing.assert_allclose(found[input_name("c")] @ weight.numpy(), found["c.y"], rtol=0, atol=1e-5)
