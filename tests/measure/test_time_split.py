from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_model import ONE_THREAD, PATCH_NUMS

from nextscale.measure.time_split import PARTS, part_of, part_patterns, profile_bundle, split_profile
from nextscale.models.var.layers import stage_facts
from nextscale.runtime._bundle import Bundle

LAYERS = ("shared_ada_lin.1", "head_nm.ada_lin.1", "word_embed", "head")
BLOCK_LAYERS = ("ada_lin.1", "attn.q", "attn.k", "attn.v", "attn.proj", "ffn.fc1", "ffn.fc2")
FACTS = stage_facts(
    dict.fromkeys([*LAYERS, *(f"blocks.{i}.{name}" for i in range(16) for name in BLOCK_LAYERS)], (8, 8)), (1, 2)
)

NODES = {
    "stage/blocks.3.attn.q": "linear",
    "stage/blocks.3.attn.proj/quantize/Sub_node_2": "linear",
    "stage/blocks.12.ffn.fc1/integer/blocks.12.ffn.fc1.uncond": "linear",
    "stage/blocks.0.ada_lin.1": "linear",
    "stage/head_nm.ada_lin.1": "linear",
    "stage/shared_ada_lin.1/quantize": "linear",
    "stage/head": "linear",
    "stage/word_embed": "linear",
    "stage/pair/stage_scales": "linear",
    "stage/activation/stage_zero_points/split": "linear",
    "stage/blocks.0.attn.scores": "attention",
    "stage/blocks.0.attn.mix/integer/Log_node_25": "attention",
    "stage/blocks.0/attn/Softmax_node_63": "attention",
    "stage/blocks.0/attn/Concat_node_59": "attention",
    "stage/sampling/CumSum_node_409": "sampling",
    "stage/sampling/sampling.threshold.then/TopK_node_5": "sampling",
    "decoder/decoder.conv_in": "decoder",
    "stage/blocks.0/LayerNormalization_node_43": "other",
    "stage/blocks.0/Gelu_node_76": "other",
    "stage/header": "other",
    "stage/blocks.99.attn.q": "other",  # the model has no such layer
    "stage/phi": "other",
    "stages": "other",
    "": "other",
}


@pytest.mark.parametrize(("node", "part"), NODES.items(), ids=NODES.keys())
def test_names_tell_the_part(node: str, part: str) -> None:
    assert part_of(node, part_patterns(FACTS)) == part


def event(name: str, ts: int, dur: int, op: str = "") -> dict[str, Any]:
    kind = {"cat": "Node", "args": {"op_name": op}} if op else {"cat": "Session", "args": {}}
    return {"name": name + ("_kernel_time" if op else ""), "ts": ts, "dur": dur, "ph": "X", **kind}


def test_a_profile_is_split_by_its_last_run() -> None:
    body = "SequentialExecutor::Execute"
    split = split_profile(
        [
            event("model_run", 0, 500),
            event("stage/head", 10, 400, "MatMul"),  # of the warm-up
            # Events come as they end; the Loop holds its bodies, the If its branch.
            event("Cast_9", 1005, 5, "Cast"),
            event("stage/head", 1110, 50, "MatMul"),
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
        ],
        FACTS,
    )
    assert split.total == pytest.approx(1000e-6)
    assert split.stages == pytest.approx((100e-6, 60e-6))
    assert {part: round(seconds * 1e6) for part, seconds in split.parts.items()} == {
        "decoder": 620,
        "sampling": 37,
        "linear": 50,
        "attention": 0,
        "other": 293,
    }


def test_a_bundle_is_profiled(tiny_bundle: Path, tmp_path: Path) -> None:
    split = profile_bundle(Bundle.open(tiny_bundle), ONE_THREAD, tmp_path)
    assert len(split.stages) == len(PATCH_NUMS)
    assert tuple(split.parts) == PARTS
    assert min(split.parts.values()) > 0
    assert sum(split.parts.values()) == pytest.approx(split.total, rel=1e-6)
    assert list(tmp_path.iterdir()) == []
