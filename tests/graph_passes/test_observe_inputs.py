from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from nextscale.export.graph_builder import Constants, add_output, finish, new_builder
from nextscale.graph_passes.observe_inputs import PARTS, Gives, Input, Observer, observe_inputs


def of(gives: Gives, *names: str) -> list[Observer]:
    return [Observer(Input(name), gives) for name in names]


def pairs(*names: str) -> list[Observer]:
    return [Observer(part, "channels") for name in names for part in Input(name).parts()]


def named(gives: Gives, name: str) -> str:
    return Observer(Input(name), gives).output


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
    observed = observe_inputs(model, of("range", "a", "c"))
    assert [value.name for value in model.graph.outputs] == ["a.y", "c.y"]
    names = [value.name for value in observed.graph.outputs]
    assert names == ["a.y", "c.y", named("range", "a"), named("range", "c")]
    count = len(list(model.graph))
    assert [node.op_type for node in list(observed.graph)[:count]] == [node.op_type for node in model.graph]
    assert not any(str(node.name).startswith("observe/") for node in model.graph)


def test_nodes_that_share_an_input_share_its_observer(model: ir.Model) -> None:
    op_types = [node.op_type for node in observe_inputs(model, of("range", "a", "b", "c")).graph]
    assert op_types.count("ReduceMin") == op_types.count("ReduceMax") == 2
    assert op_types.count("Identity") == 3


def test_channels_are_observed_apart(model: ir.Model) -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    observed = observe_inputs(model, [*of("range", "a"), *of("channels", "a")])
    onnx.checker.check_model(ir.to_proto(observed), full_check=True)
    found = run(observed, x)
    np.testing.assert_array_equal(found[named("channels", "a")], [x.min(axis=(0, 1)), x.max(axis=(0, 1))])
    np.testing.assert_array_equal(found[named("range", "a")], [x.min(), x.max()])


def test_no_names_observe_nothing(model: ir.Model) -> None:
    same = observe_inputs(model, of("range"))
    assert ir.to_proto(same).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_an_unknown_node_is_refused(model: ir.Model) -> None:
    with pytest.raises(ValueError, match="no node of the main graph is named 'd'"):
        observe_inputs(model, of("range", "a", "d"))


def test_the_graph_is_valid_before_and_after(model: ir.Model) -> None:
    for checked in (model, observe_inputs(model, of("range", "a", "b", "c"))):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


def test_ranges_are_those_of_numpy_for_random_shapes(model: ir.Model) -> None:
    weight = model.graph.initializers["b.weight"].const_value
    assert weight is not None
    observed = observe_inputs(model, of("range", "a", "b", "c"))
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        x = (rng.normal(size=(*rng.integers(1, 9, 2), 8)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        found = run(observed, x)
        for name in ("a", "b"):
            np.testing.assert_array_equal(found[named("range", name)], [x.min(), x.max()])
        inner = np.tanh(x.astype(np.float64) @ weight.numpy())
        # Sums of 8 float32 products, then tanh, whose slope is at most 1.
        bound = 8 * 2**-23 * np.abs(x).max() * np.abs(weight.numpy()).max() + 2**-20
        np.testing.assert_allclose(found[named("range", "c")], [inner.min(), inner.max()], rtol=0, atol=bound)
        np.testing.assert_array_equal(found["c.y"], run(model, x)["c.y"])


# Pairs and inputs


def test_pairs_that_share_an_input_share_its_observers(model: ir.Model) -> None:
    observed = observe_inputs(model, pairs("a", "b", "c"))
    op_types = [node.op_type for node in observed.graph]
    assert op_types.count("Split") == op_types.count("Sub") == 2
    assert op_types.count("ReduceMin") == op_types.count("ReduceMax") == 4
    names = [value.name for value in observed.graph.outputs]
    assert names == [
        "a.y",
        "c.y",
        *(Observer(Input(name, part=part), "channels").output for name in "abc" for part in PARTS),
    ]
    assert [value.name for value in model.graph.outputs] == ["a.y", "c.y"]


def test_parts_and_values_of_an_unknown_node_are_refused(model: ir.Model) -> None:
    for observers in (pairs("a", "d"), of("values", "a", "d")):
        with pytest.raises(ValueError, match="no node of the main graph is named 'd'"):
            observe_inputs(model, observers)


def test_all_observers_together_are_a_valid_graph(model: ir.Model) -> None:
    every = ("a", "b", "c")
    together = [*of("range", *every), *of("channels", *every), *pairs(*every), *of("values", *every)]
    for checked in (model, observe_inputs(model, together)):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)
    names = [value.name for value in observe_inputs(model, [*together, *together]).graph.outputs]
    assert names == ["a.y", "c.y", *(observer.output for observer in together)]
    assert len(set(names)) == 2 + 5 * len(every)


def test_pairs_are_those_of_numpy_for_random_shapes(model: ir.Model) -> None:
    """Of the rows without the class, which come second, and of what the class adds."""
    observed = observe_inputs(model, pairs("a", "c"))
    for seed in range(5):
        print("seed", seed)
        rng = np.random.default_rng(seed)
        images, tokens = rng.integers(1, 5, 2)
        x = (rng.normal(size=(2 * images, tokens, 8)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        found = run(observed, x)
        cond, uncond = np.split(x, 2)
        for part, values in (("uncond", uncond), ("difference", cond - uncond)):
            expected = [values.min(axis=(0, 1)), values.max(axis=(0, 1))]
            np.testing.assert_array_equal(found[Observer(Input("a", part=part), "channels").output], expected)
            assert found[Observer(Input("c", part=part), "channels").output].shape == (2, 8)
        np.testing.assert_array_equal(found["c.y"], run(model, x)["c.y"])


def test_exposed_inputs_are_the_inputs(model: ir.Model) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found = run(observe_inputs(model, of("values", "a", "b", "c")), x)
    np.testing.assert_array_equal(found[named("values", "a")], x)
    np.testing.assert_array_equal(found[named("values", "b")], x)
    weight = model.graph.initializers["c.weight"].const_value
    assert weight is not None
    # Sums of 8 float32 products.
    np.testing.assert_allclose(found[named("values", "c")] @ weight.numpy(), found["c.y"], rtol=0, atol=1e-5)
