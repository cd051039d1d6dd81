from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.graph_passes._stage_tables import stage_tables
from nextscale.graph_passes.qparams import ActivationQParams


def model() -> ir.Model:
    """Gives its stage back."""
    builder = new_builder("stages")
    stage = builder.input("stage", ir.DataType.INT64, [])
    add_output(builder, builder.op.Identity(stage), "same_stage", ir.DataType.INT64, [])
    return finish(builder)


def random_qparams(rng: np.random.Generator, names: int, stages: int) -> dict[str, ActivationQParams]:
    return {
        f"layer.{i}": ActivationQParams(
            rng.random(stages, np.float32), rng.integers(0, 256, stages).astype(np.uint8), 255
        )
        for i in range(names)
    }


def with_tables(qparams: dict[str, ActivationQParams], prefix: str = "activation") -> ir.Model:
    """The model with what the tables hand out as outputs."""
    made = model()
    for pair in stage_tables(made.graph, qparams, "stage", prefix).values():
        made.graph.outputs.extend(pair)
    return made


def run(model: ir.Model, stage: int) -> dict[str, NDArray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"stage": np.array(stage)}), strict=True))


def test_structure() -> None:
    """However many names, two Gathers and two Splits."""
    made = with_tables(random_qparams(np.random.default_rng(0), 5, 3))
    op_types = Counter(node.op_type for node in made.graph)
    assert op_types == {"Gather": 2, "Split": 2, "Identity": 1}
    assert [node.name for node in made.graph if node.op_type == "Gather"] == [
        "activation/stage_scales",
        "activation/stage_zero_points",
    ]
    shapes = {name: list(value.shape or ()) for name, value in made.graph.initializers.items()}
    assert shapes == {"activation.scales": [3, 5], "activation.zero_points": [3, 5]}


def test_nothing_is_added_for_no_names() -> None:
    made, before = model(), ir.to_proto(model()).SerializeToString()
    assert stage_tables(made.graph, {}, "stage", "activation") == {}
    assert ir.to_proto(made).SerializeToString() == before


def test_the_graph_is_valid_before_and_after() -> None:
    for checked in (model(), with_tables(random_qparams(np.random.default_rng(0), 3, 4))):
        onnx.checker.check_model(ir.to_proto(checked), full_check=True)


def test_two_tables_do_not_meet() -> None:
    made, rng = model(), np.random.default_rng(0)
    for prefix in ("activation", "pair"):
        found = {f"{prefix}.{name}": values for name, values in random_qparams(rng, 2, 3).items()}
        for pair in stage_tables(made.graph, found, "stage", prefix).values():
            made.graph.outputs.extend(pair)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert len(run(made, 2)) == 9


def test_a_prefix_that_is_taken_is_refused() -> None:
    made, qparams = model(), random_qparams(np.random.default_rng(0), 2, 3)
    stage_tables(made.graph, qparams, "stage", "activation")
    with pytest.raises(ValueError, match=r"the graph has a table 'activation\.scales' already"):
        stage_tables(made.graph, qparams, "stage", "activation")


def test_an_unknown_stage_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no input of the graph is named 'si'"):
        stage_tables(model().graph, random_qparams(np.random.default_rng(0), 2, 3), "si", "activation")


def test_each_name_gets_its_own_at_every_stage_for_random_shapes() -> None:
    """Among them a single name, and a single stage."""
    for seed, (names, stages) in enumerate([(1, 1), (1, 4), (3, 1), (7, 10), (100, 3)]):
        print("seed", seed)
        qparams = random_qparams(np.random.default_rng(seed), names, stages)
        made = with_tables(qparams)
        for stage in range(stages):
            found = run(made, stage)
            for name, expected in qparams.items():
                for field in ("scale", "zero_point"):
                    value = found[f"{name}.{field}"]
                    assert value.dtype == getattr(expected, field).dtype
                    np.testing.assert_array_equal(value, getattr(expected, field)[stage : stage + 1])
