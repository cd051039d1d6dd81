from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_model import ONE_THREAD, PATCH_NUMS

from nextscale.measure.profile_events import profile_generation, read_profile
from nextscale.runtime._bundle import Bundle

CVAE, EMBEDDING = 32, 64  # of the tiny model


def event(name: str, ts: int, dur: int, op: str = "", *shapes: list[int]) -> dict[str, Any]:
    kind: dict[str, Any] = {"cat": "Session", "args": {}}
    if op:
        kind = {"cat": "Node", "args": {"op_name": op, "input_type_shape": [{"float": shape} for shape in shapes]}}
    return {"name": name + ("_kernel_time" if op else ""), "ts": ts, "dur": dur, "ph": "X", **kind}


def test_the_last_run_is_told_by_operator_and_stage() -> None:
    body = "SequentialExecutor::Execute"
    profile = read_profile(
        [
            event("model_run", 0, 500),
            event("stage/head", 10, 400, "MatMul"),  # of the warm-up
            # Events come as they end; the Loop holds its bodies, the If its branch.
            event("Cast_9", 1005, 5, "Cast"),
            event("stage/head", 1110, 50, "MatMul", [2, 8], [8, 4]),
            event(body, 1100, 100),
            event("stage/sampling/sampling.threshold.then/TopK_node_5", 1210, 30, "TopK"),
            event(body, 1208, 33),
            event("stage/sampling/If_node_4", 1205, 40, "If"),
            event(body, 1200, 60),
            event("stages", 1090, 180, "Loop"),
            event("decoder/decoder.conv_in", 1300, 600, "Conv"),
            event("ReorderOutput", 1900, 20, "ReorderOutput"),
            event(body, 1002, 990),
            event("model_run", 1000, 1000),
        ]
    )
    assert profile.total == pytest.approx(1000e-6)
    assert profile.stages == pytest.approx((100e-6, 60e-6))
    assert sum(operator.seconds for operator in profile.operators) == pytest.approx(profile.total)
    found = {
        operator.name: (operator.op_type, round(operator.seconds * 1e6), operator.stage, operator.decoding)
        for operator in profile.operators
        if operator.op_type
    }
    assert found == {
        "Cast_9": ("Cast", 5, None, False),
        "stage/head": ("MatMul", 50, 0, False),
        "stage/sampling/sampling.threshold.then/TopK_node_5": ("TopK", 30, 1, False),
        "stage/sampling/If_node_4": ("If", 7, 1, False),
        "stages": ("Loop", 20, None, False),
        "decoder/decoder.conv_in": ("Conv", 600, None, True),
        "ReorderOutput": ("ReorderOutput", 20, None, True),
    }
    assert [operator.inputs for operator in profile.operators if operator.name == "stage/head"] == [((2, 8), (8, 4))]


def test_a_bundle_is_profiled(tiny_bundle: Path, tmp_path: Path) -> None:
    profile = profile_generation(Bundle.open(tiny_bundle), ONE_THREAD, tmp_path)
    assert len(profile.stages) == len(PATCH_NUMS)
    assert sum(operator.seconds for operator in profile.operators) == pytest.approx(profile.total, rel=1e-6)
    inside = [operator for operator in profile.operators if operator.name.startswith("stage/")]
    assert {operator.stage for operator in inside} == set(range(len(PATCH_NUMS)))
    assert {operator.stage for operator in profile.operators if operator.name.startswith("decoder/")} == {None}
    width = {shape[-1] for operator in inside for shape in operator.inputs if len(shape) == 3}
    assert {CVAE, EMBEDDING} <= width
    assert list(tmp_path.iterdir()) == []
